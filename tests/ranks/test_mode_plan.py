"""The rows of a mode divided over the ranks, with their data: the weights of one process, whatever the ranges."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from mode_cases import SPECS, dense_and_gradient, entry_of_another_rank, train_half_of_rows, train_rows
from plan_cases import METHODS
from rank_pool import RankPool

TWO, FOUR = ["mode"], ["mode", "mode:2", "mode+bond"]
CASES = [*(("cp", method) for method in METHODS), *((spec, "sam") for spec in SPECS if spec != "cp")]


@cache
def alone(spec: str, method: str) -> dict[str, np.ndarray]:
    return train_rows("replicate", spec, method)


def assert_same(got: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    scale = max(float(np.abs(value).max()) for value in expected.values())
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert float(np.abs(got[name] - value).max()) < 1e-12 * scale, name


@pytest.mark.parametrize(("spec", "method"), CASES)
@pytest.mark.parametrize("plan", TWO)
def test_two_ranks_with_their_own_rows_train_the_weights_of_one_process(
    two_ranks: RankPool, plan: str, spec: str, method: str
) -> None:
    for got in two_ranks.run(train_rows, plan, spec, method):
        assert_same(got, alone(spec, method))


@pytest.mark.parametrize(("spec", "method"), CASES)
@pytest.mark.parametrize("plan", FOUR)
def test_four_ranks_with_their_own_rows_train_the_weights_of_one_process(
    four_ranks: RankPool, plan: str, spec: str, method: str
) -> None:
    for got in four_ranks.run(train_rows, plan, spec, method):
        assert_same(got, alone(spec, method))


@pytest.mark.parametrize(
    ("before", "after"),
    [(("mode", 4), ("replicate", 1)), (("replicate", 1), ("mode", 4)), (("mode", 2), ("mode+bond", 4))],
    ids=str,
)
def test_a_checkpoint_of_unequal_ranges_goes_on_under_any_plan(
    two_ranks: RankPool, four_ranks: RankPool, tmp_path: Path, before: tuple[str, int], after: tuple[str, int]
) -> None:
    answers = []
    for (plan, num_ranks), resumes in ((before, False), (after, True)):
        if num_ranks == 1:
            answers = [train_half_of_rows(plan, tmp_path, resumes)]
        else:
            pool = two_ranks if num_ranks == 2 else four_ranks
            answers = pool.run(train_half_of_rows, plan, tmp_path, resumes)
    for got in answers:
        assert_same(got, alone("cp", "sam+das"))


@pytest.mark.parametrize("plan", FOUR)
def test_the_whole_tensor_can_be_asked_for_and_differentiated(four_ranks: RankPool, plan: str) -> None:
    full, gradient = dense_and_gradient("replicate")
    for got_full, got_gradient in four_ranks.run(dense_and_gradient, plan):
        assert float(np.abs(got_full - full).max()) < 1e-12
        assert_same(got_gradient, gradient)


def test_a_rank_that_is_asked_for_the_row_of_another_says_so(two_ranks: RankPool) -> None:
    for said in two_ranks.run(entry_of_another_rank):
        assert "holds" in said
