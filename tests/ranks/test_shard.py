"""`shard` and what it leaves behind: equal starts, averaged gradients, freed weights, refusals."""

import numpy as np
import pytest
from rank_pool import RankPool
from shard_cases import (
    average,
    average_halves,
    error_of_a_bfloat16_mean,
    evaluate_before_perturbed_forward,
    gradient_placed_otherwise,
    measure_a_mesh_without_rank_0,
    refusal_of,
    report_losses_and_flush,
    shard_a_network_of_ones_own,
    start_with_own_seed,
)


@pytest.mark.parametrize("plan", ["replicate", "fsdp"])
def test_every_rank_starts_from_the_weights_and_buffers_of_rank_0(two_ranks: RankPool, plan: str) -> None:
    for is_equal, buffer in two_ranks.run(start_with_own_seed, plan):
        assert is_equal.all()
        np.testing.assert_array_equal(buffer, [0.0, 0.0])


def test_a_forward_without_backward_leaves_no_whole_weights_for_the_perturbed_one(two_ranks: RankPool) -> None:
    """With reshard_after_forward=False the second forward skipped its all-gather and saw unperturbed weights."""
    assert two_ranks.run(evaluate_before_perturbed_forward) == [(False, True)] * 2


@pytest.mark.parametrize(
    ("bucket_bytes", "dtypes", "num_buckets"),
    [
        (2**20, ["float32"] * 5, 1),
        (80, ["float32"] * 5, 3),  # 40 bytes each: two to a bucket
        (1, ["float32"] * 5, 5),
        (2**20, ["float32", "float64", "float64", "float32", "bfloat16"], 4),
    ],
)
def test_buckets_of_any_size_and_dtype_average_every_gradient(
    two_ranks: RankPool, bucket_bytes: int, dtypes: list[str], num_buckets: int
) -> None:
    for answer in two_ranks.run(average, bucket_bytes, dtypes):
        assert answer["num_buckets"] == num_buckets
        expected = [[1.5 * (k + 1)] * 10 for k in range(5)]
        np.testing.assert_array_equal(answer["gradients"], expected)


def test_a_mean_that_float16_holds_is_found_though_the_sum_is_too_large(two_ranks: RankPool) -> None:
    """Summed before it was divided, it was infinite, and every step was skipped."""
    assert two_ranks.run(average_halves, 40000.0) == [[40000.0] * 3] * 2


@pytest.mark.parametrize("plan", ["replicate", "fsdp"])
@pytest.mark.parametrize("pool", ["two_ranks", "four_ranks"])
def test_a_gradient_that_travels_in_bfloat16_is_off_by_no_more_than_it_is_rounded(
    request: pytest.FixtureRequest, pool: str, plan: str
) -> None:
    for ratio, error in request.getfixturevalue(pool).run(error_of_a_bfloat16_mean, plan):
        assert 0 < ratio <= 1
        assert error > 0


def test_a_gradient_placed_unlike_its_parameter_is_brought_to_it(two_ranks: RankPool) -> None:
    first, second = two_ranks.run(gradient_placed_otherwise)
    assert first == ([[3.0, 0.0]], ["S(0)"], 25.0)
    assert second == ([[0.0, 4.0]], ["S(0)"], 25.0)


def test_a_parameter_of_which_rank_0_has_no_piece_is_refused_there(two_ranks: RankPool) -> None:
    """Its norm counted as 0."""
    first, second = two_ranks.run(measure_a_mesh_without_rank_0)
    assert "a mesh without rank 0" in first
    assert second == ""


def test_losses_are_averaged_and_rank_0_alone_publishes(two_ranks: RankPool) -> None:
    assert two_ranks.run(report_losses_and_flush) == [(3.0, 0.5, [1]), (3.0, 0.5, [])]


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("shared core", "plan: fsdp: 1.cores.0 is shared by two networks"),
        ("shared with a layer", "plan: fsdp: 1.weight is shared by two networks, or by one and the rest"),
        (
            "mixed dtypes",
            "plan: fsdp: 1.cores.0 is gathered together with others, and they are of",
        ),
        ("not contiguous", "plan: fsdp: 1.cores.1 is not contiguous"),
        ("plan of another model", "plan: made for core of shape (8, 4): the model has None"),
        ("plan of another mesh", "plan: made for a mesh of (1,): this one is (2,)"),
        ("replicate shared core", ""),
    ],
)
def test_what_fsdp_would_do_wrongly_is_refused(two_ranks: RankPool, case: str, message: str) -> None:
    for said in two_ranks.run(refusal_of, case):
        assert said.startswith(message)
        assert bool(said) == bool(message)


def test_a_network_that_is_no_tensor_network_is_cut_and_gathered_by_its_entry_points(two_ranks: RankPool) -> None:
    """Networks were found by their class, and `at` and `dense` alone gathered the weights."""
    assert two_ranks.run(shard_a_network_of_ones_own) == [(True, True, True)] * 2
