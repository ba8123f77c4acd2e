"""The numbers in place of auto are those of rank 0, also where a user's task starts elsewhere on every rank."""

from auto_cases import model_of, numbers_of_this_rank
from rank_pool import RankPool

from distsam.optim import auto_bar_alpha, auto_rho


def test_two_ranks_have_the_numbers_of_the_first(two_ranks: RankPool) -> None:
    expected = {"rho": auto_rho(model_of(0)), "alpha": auto_bar_alpha(model_of(0))}
    assert expected["rho"] != auto_rho(model_of(1))
    answers = two_ranks.run(numbers_of_this_rank)
    assert [numbers for numbers, _ in answers] == [expected] * 2
    # A sum for each number, and one broadcast of an object, its size before it; at the start alone, none in a step.
    assert [calls for _, calls in answers] == [4, 4]
