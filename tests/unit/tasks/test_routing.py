import time

import numpy as np
import pytest

from distsam.errors import ArgumentError
from distsam.tasks.routing import ROW_WEIGHT, Owner, balanced_bounds, owner_of
from distsam.tasks.task import TaskContext

ROWS = 1000
RNG = np.random.default_rng(0)
ZIPF = np.floor(1e5 / np.arange(1, ROWS + 1)).astype(np.int64)
ONE_HOT = np.ones(ROWS, dtype=np.int64)
ONE_HOT[ROWS // 2] = 100 * ROWS
COUNTS = {
    "uniform": np.full(ROWS, 7),
    "zipf": ZIPF,
    "zipf shuffled": RNG.permutation(ZIPF),
    "one hot row": ONE_HOT,
    "first row alone": np.where(np.arange(ROWS) == 0, 10_000, 0),
    "last row alone": np.where(np.arange(ROWS) == ROWS - 1, 10_000, 0),
    "empty": np.zeros(ROWS, dtype=np.int64),
}


def sums(counts, bounds):
    return np.diff(np.concatenate([[0], np.cumsum(counts)])[list(bounds)])


@pytest.mark.parametrize("num_parts", [1, 2, 4, 7, ROWS - 1])
@pytest.mark.parametrize("name", COUNTS)
def test_no_range_is_empty_and_none_exceeds_the_mean_load_by_more_than_the_promise(name, num_parts):
    counts = COUNTS[name]
    bounds = balanced_bounds(counts, num_parts)
    assert (len(bounds), bounds[0], bounds[-1]) == (num_parts + 1, 0, ROWS)
    assert all(type(bound) is int for bound in bounds)
    assert (np.diff(bounds) > 0).all()
    load = counts + ROW_WEIGHT * counts.mean()
    allowed = load.sum() / num_parts + load.max() / 2 * (1 + sum(1 / n for n in range(1, num_parts)))
    # Each of the sums of positive numbers is right to ROWS rounding errors.
    assert sums(load, bounds).max() <= allowed * (1 + 2 * ROWS * np.finfo(float).eps)


def test_uniform_rows_are_cut_into_equal_ranges():
    assert balanced_bounds(np.full(1000, 3), 4) == (0, 250, 500, 750, 1000)
    assert balanced_bounds(np.zeros(8, dtype=np.int64), 4) == (0, 2, 4, 6, 8)


@pytest.mark.parametrize("name", COUNTS)
def test_skewed_observations_give_no_rank_most_of_the_rows(name):
    """Without a weight of rows, one of eight ranks had 999 of 1000 rows, of which one alone was observed."""
    counts, num_parts = COUNTS[name], 8
    bounds = balanced_bounds(counts, num_parts)
    load = counts + ROW_WEIGHT * counts.mean()
    heaviest = load.max() / 2 * (1 + sum(1 / n for n in range(1, num_parts)))
    if counts.sum():
        most_rows = (1 + 1 / ROW_WEIGHT) * ROWS / num_parts
        # A range over the mean load has the heaviest row in it, which brings one row, or one next to it.
        lighter = [
            n for n, got in zip(np.diff(bounds), sums(load, bounds), strict=True) if got <= load.sum() / num_parts
        ]
        assert max(lighter) <= most_rows
        assert sums(counts, bounds).max() <= (1 + ROW_WEIGHT) * counts.sum() / num_parts + heaviest
    assert max(np.diff(bounds)) < 0.6 * ROWS


def test_a_heavy_row_has_a_range_of_its_own_and_the_others_share_the_rest():
    bounds = balanced_bounds(COUNTS["first row alone"], 4, row_weight=0.1)
    assert bounds == (0, 1, 334, 667, 1000)


@pytest.mark.parametrize("num_parts", [3, 4, 8])
def test_a_heavy_row_at_the_end_leaves_the_others_to_all_other_ranges(num_parts):
    """With ten of eleven observations in the last of 1,000 rows the first of three ranges had 998 of the others."""
    counts = np.ones(ROWS, dtype=np.int64)
    counts[-1] = 10 * ROWS
    rows = np.diff(balanced_bounds(counts, num_parts))
    assert rows[-1] == 1
    # Each of the others is within one row of its part of the rest, and the last of them makes up for that.
    assert np.abs(rows[:-1] - (ROWS - 1) / (num_parts - 1)).max() <= num_parts


@pytest.mark.parametrize("num_rows", [1, 3, 4])
def test_fewer_rows_than_parts_leave_the_last_parts_empty(num_rows):
    bounds = balanced_bounds(np.arange(num_rows), 4)
    assert bounds == tuple(min(part, num_rows) for part in range(5))


def test_ten_million_rows_are_cut_in_less_than_a_second():
    counts = np.random.default_rng(0).integers(0, 5, 10_000_000)
    start = time.process_time()
    bounds = balanced_bounds(counts, 1024)
    assert time.process_time() - start < 1
    assert (np.diff(bounds) > 0).all()


def test_ranks_of_a_range_share_its_entries_one_after_the_other():
    ranges = np.array([0, 1, 2, 0, 1, 2, 2, 2])
    owners = Owner(0, 0, 6, 3).owners(ranges, first=5)
    assert owners.tolist() == [3, 1, 5, 0, 4, 2, 5, 2]
    assert [(Owner(0, rank, 6, 3).range, Owner(0, rank, 6, 3).copy) for rank in (0, 2, 3, 5)] == [
        (0, 0),
        (2, 0),
        (0, 1),
        (2, 1),
    ]


def test_modes_and_ranges_that_cannot_be_are_refused():
    with pytest.raises(ArgumentError, match="routed_mode: is 3; the tensor has 3 modes: it must be 0 to 2"):
        owner_of(TaskContext(routed_mode=3), (4, 5, 6))
    with pytest.raises(ArgumentError, match="num_ranges: is 3; it must divide 4"):
        owner_of(TaskContext(routed_mode=0, data_size=4, num_ranges=3), (4, 5, 6))
