"""A gradient that is not finite on one rank: all ranks skip the step together."""

import pytest
from rank_cases import raise_in_second_pass, step_with_bad_gradient
from rank_pool import RankPool


@pytest.mark.parametrize("bad_pass", [1, 2])
@pytest.mark.parametrize("plan", ["replicate", "fsdp"])
def test_a_bad_gradient_on_one_rank_skips_the_step_on_all(two_ranks: RankPool, plan: str, bad_pass: int) -> None:
    for answer in two_ranks.run(step_with_bad_gradient, plan, "sam", bad_pass, 3):
        assert answer["is_untouched"]
        assert answer["is_state_untouched"]
        assert answer["num_skipped"] == 3
        assert answer["num_steps"] == 5
        assert not answer["error"]
        assert answer["moves_again"]


def test_ten_skipped_steps_in_a_row_end_the_run_on_all_ranks(two_ranks: RankPool) -> None:
    for answer in two_ranks.run(step_with_bad_gradient, "fsdp", "sam", 2, 15):
        assert answer["num_skipped"] == 10
        assert "10 steps in a row" in answer["error"]
        assert answer["is_untouched"]


@pytest.mark.parametrize("plan", ["replicate", "fsdp"])
def test_after_a_second_pass_that_raised_the_model_says_what_it_said_before(two_ranks: RankPool, plan: str) -> None:
    """FSDP2 kept the gathered, perturbed weights of the pass that was cut off, though the shards were restored."""
    for answer in two_ranks.run(raise_in_second_pass, plan):
        assert answer["error"]
        assert answer["is_same"]
        assert 0 < answer["moved"] < 10
