"""What a step sends beyond its passes: counted, for every method and plan, and for small and large weights."""

import pytest
from rank_cases import count_chain_step, count_step, finite_where, measure_mixed, stop_on_one_rank
from rank_pool import RankPool

EXTRA = {"base": 1, "das": 1, "nbar": 1, "obar": 1, "sam": 2, "sam+das": 2}


@pytest.mark.parametrize("method", EXTRA)
@pytest.mark.parametrize("plan", ["replicate", "fsdp"])
def test_a_step_adds_one_or_two_small_all_reduces_to_its_passes(two_ranks: RankPool, plan: str, method: str) -> None:
    small = two_ranks.run(count_step, plan, 1, method, 1)
    large = two_ranks.run(count_step, plan, 1, method, 5)
    for (extra, missing), (extra_large, _) in zip(small, large, strict=True):
        assert not missing
        assert [name for name, _ in extra.elements()] == ["allreduce_"] * EXTRA[method]
        # 7 cores: at most 2 * 7 + 3 float64, whatever the size of the weights.
        assert all(size <= 8 * (2 * 7 + 3) for _, size in extra)
        assert extra == extra_large


@pytest.mark.parametrize("num_cores", [3, 60])
@pytest.mark.parametrize("method", ["das", "sam", "sam+das"])
@pytest.mark.parametrize("plan", ["replicate", "fsdp"])
def test_a_step_adds_as_many_all_reduces_whatever_the_number_of_cores(
    two_ranks: RankPool, plan: str, method: str, num_cores: int
) -> None:
    for added in two_ranks.run(count_chain_step, plan, method, num_cores):
        assert [name for name, _ in added] == ["allreduce_"] * EXTRA[method]
        assert all(size <= 8 * (2 * num_cores + 3) for _, size in added)


@pytest.mark.parametrize("plan", ["replicate", "fsdp"])
def test_weights_that_are_not_finite_on_one_rank_are_seen_on_all(two_ranks: RankPool, plan: str) -> None:
    assert two_ranks.run(finite_where, plan) == [[True, False]] * 2


def test_a_sam_step_on_a_two_axis_mesh_adds_two(four_ranks: RankPool) -> None:
    for extra, missing in four_ranks.run(count_step, "fsdp", 2, "sam", 1):
        assert not missing
        assert sum(extra.values()) == 2


@pytest.mark.parametrize("world", [2, 4])
def test_a_meter_counts_each_element_once_on_any_mix_of_placements(
    two_ranks: RankPool, four_ranks: RankPool, world: int
) -> None:
    for answer in {2: two_ranks, 4: four_ranks}[world].run(measure_mixed, world):
        assert answer["calls"] == {"allreduce_": 1}
        expected = answer["expected_gamma"]
        assert answer["gamma"] == pytest.approx(expected[:-1], rel=1e-14)
        assert answer["gamma_rest"] == pytest.approx(expected[-1], rel=1e-14)
        assert answer["norms_sq"] == pytest.approx(answer["expected_norms_sq"][:-1], rel=1e-14)
        assert answer["loss"] == 2.0


def test_a_stop_asked_for_by_one_rank_reaches_all_in_the_same_step(two_ranks: RankPool) -> None:
    assert two_ranks.run(stop_on_one_rank) == [[False, False, True, True]] * 2
