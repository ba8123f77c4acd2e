"""Alternating least squares on two ranks, each with its part of the entries: the cores of one process."""

import numpy as np
import pytest
from als_cases import SPECS, count_collectives, sweep
from rank_pool import RankPool


@pytest.mark.parametrize("cut", ["equal", "all on rank 0"])
@pytest.mark.parametrize("decay", [0.0, 1e-3])
@pytest.mark.parametrize("name", SPECS)
def test_two_ranks_come_to_the_cores_of_one(two_ranks: RankPool, name: str, decay: float, cut: str) -> None:
    expected = sweep(name, decay, "equal")
    first, second = two_ranks.run(sweep, name, decay, cut)
    for core, here, there in zip(expected, first, second, strict=True):
        np.testing.assert_array_equal(here, there)
        assert np.abs(here - core).max() <= 1e-10 * np.abs(core).max()


def test_a_sweep_sends_the_matrices_and_the_cores(two_ranks: RankPool) -> None:
    found = two_ranks.run(count_collectives, "cp")[0]
    # rows x 3 unknowns x (3 + the right side), then the core
    assert [num_bytes // 8 for _, num_bytes in found] == [9 * 3 * 4, 9 * 3, 6 * 3 * 4, 6 * 3, 5 * 3 * 4, 5 * 3]
