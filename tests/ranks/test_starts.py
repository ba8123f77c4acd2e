"""Each rank draws the pieces that it holds, and together they are what one process draws, bit for bit."""

import numpy as np
import pytest
from rank_pool import RankPool
from start_cases import start_in_pieces, start_without_numbers

TWO, FOUR = ["replicate", "fsdp", "bond"], ["replicate", "fsdp:2", "uneven", "bond", "bond:2", "fsdp+bond"]
# The root mean square made exact, and of networks too large for that: met in the mean over starts.
EXACT, AVERAGED = 2**22, 0


def assert_same_bits(got: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert np.array_equal(got[name], value), name


@pytest.mark.parametrize(("exact_elements", "dtype"), [(EXACT, "float64"), (AVERAGED, "float32")])
@pytest.mark.parametrize("plan", TWO)
def test_two_ranks_start_from_the_bits_of_one_process(
    two_ranks: RankPool, plan: str, exact_elements: int, dtype: str
) -> None:
    alone = start_in_pieces(plan, exact_elements, dtype)
    for got in two_ranks.run(start_in_pieces, plan, exact_elements, dtype):
        assert_same_bits(got, alone)


@pytest.mark.parametrize("plan", FOUR)
def test_four_ranks_start_from_the_bits_of_one_process(four_ranks: RankPool, plan: str) -> None:
    alone = start_in_pieces(plan, AVERAGED, "float64")
    for got in four_ranks.run(start_in_pieces, plan, AVERAGED, "float64"):
        assert_same_bits(got, alone)


@pytest.mark.parametrize("plan", TWO)
def test_a_model_that_is_to_be_loaded_is_not_drawn(two_ranks: RankPool, plan: str) -> None:
    assert two_ranks.run(start_without_numbers, plan) == [(0.0, True)] * 2
