"""Which rows of a mode a rank owns, and what it knows of the entries that lie in other ranks' rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from distsam.errors import ArgumentError
from distsam.tasks.scaling import Spread
from distsam.tasks.task import TaskContext

ROW_WEIGHT = 0.5


@dataclass(frozen=True)
class Owner:
    """Which entries a data rank owns: those in its range of rows, shared with the ranks that hold the same range.

    Args:
        mode: the mode whose positions are divided.
        rank, num_ranks: data rank and data size.
        num_ranges: of rows; it divides `num_ranks`.
    """

    mode: int
    rank: int
    num_ranks: int
    num_ranges: int

    @property
    def range(self) -> int:
        """The range of rows that is here."""
        return self.rank % self.num_ranges

    @property
    def copy(self) -> int:
        """Which of the ranks with this range it is, from 0 on."""
        return self.rank // self.num_ranges

    def owners(self, ranges: np.ndarray, first: int) -> np.ndarray:
        """(n,) data rank of each entry: of those that hold its range one after the other, by where it stands.

        Args:
            ranges: (n,) range of each entry.
            first: where the first of them stands among all entries of the source.
        """
        copies = np.arange(first, first + len(ranges)) % (self.num_ranks // self.num_ranges)
        return copies * self.num_ranges + ranges


def owner_of(context: TaskContext, shape: Sequence[int]) -> Owner:
    """What the data rank of a context owns of a tensor of this shape.

    Raises:
        ArgumentError: the tensor has no such mode, or `num_ranges` does not divide the data size.
    """
    mode, num_ranks = context.routed_mode, context.data_size
    num_ranges = num_ranks if context.num_ranges is None else context.num_ranges
    if mode is None or not 0 <= mode < len(shape):
        raise ArgumentError(
            "routed_mode", f"is {mode}; the tensor has {len(shape)} modes: it must be 0 to {len(shape) - 1}"
        )
    if num_ranges < 1 or num_ranks % num_ranges:
        raise ArgumentError("num_ranges", f"is {num_ranges}; it must divide {num_ranks}, the number of data ranks")
    return Owner(mode, context.data_rank, num_ranks, num_ranges)


@dataclass(frozen=True, eq=False)
class Routing:
    """How the entries of a tensor are divided over the data ranks by their position in one mode.

    Args:
        owner: which entries this rank owns.
        bounds: range r of the rows goes from bounds[r] to bounds[r + 1], which is outside.
        spreads: each part of the split -> count, mean, ... of the values of that part on all ranks together.
        most: each part of the split -> entries of that part on the rank that has most of them.
        own_train: (M,) int64, ascending: which of all training entries this rank owns.
        identity: digest of all entries and of the part that each is in.
    """

    owner: Owner
    bounds: tuple[int, ...]
    spreads: Mapping[str, Spread]
    most: Mapping[str, int]
    own_train: np.ndarray
    identity: str


def balanced_bounds(counts: np.ndarray, num_parts: int, row_weight: float = ROW_WEIGHT) -> tuple[int, ...]:
    """Cuts the rows of a mode into contiguous ranges of about equal load.

    A row weighs the observations in it, and besides `row_weight` times the mean number of observations a row, because
    it costs memory (weight, gradient, state of the optimizer) and a share of every optimizer step also where nothing
    is observed. With a weight of w all rows together weigh w times all observations. So a range of a mean load has at
    most (1 + w) times the mean number of observations, and at most (1 + 1/w) times the mean number of rows, however
    the observations are spread. With the default of 1/2 that is 1.5 times the time and 3 times the memory: time is
    lost in every step, memory only has to be there.

    Range after range ends at the row that brings it nearest to the mean of what is left. A range then exceeds the mean
    load by at most m / 2 (1 + 1 + 1/2 + ... + 1/(num_parts - 1)), where m is the weight of the heaviest row.

    Args:
        counts: (rows,) observations of each row.
        num_parts: number of ranges.
        row_weight: what each row weighs beside its observations, in units of their mean; 0 or more.

    Returns:
        num_parts + 1 numbers from 0 to rows, increasing; where there are fewer rows than parts, the last ranges are
        empty and all others one row long.

    Memory: one float64 a row.
    """
    num_rows = len(counts)
    if num_rows <= num_parts:
        return tuple(min(part, num_rows) for part in range(num_parts + 1))
    weights = np.asarray(counts, dtype=np.float64)
    # Of a mode without observations the rows are divided.
    weights = weights + (row_weight * float(weights.mean()) or 1.0)
    np.minimum(weights, _share(weights, num_parts), out=weights)
    load = np.cumsum(weights, out=weights)
    bounds = [0]
    for left in range(num_parts, 1, -1):
        before = load[bounds[-1] - 1] if bounds[-1] else 0.0
        target = before + (load[-1] - before) / left
        end = int(np.searchsorted(load, target)) + 1
        # load[end - 1] is the first not below the target; one row less may be nearer.
        if end >= 2 and target - load[end - 2] < load[end - 1] - target:
            end -= 1
        bounds.append(min(max(end, bounds[-1] + 1), num_rows - left + 1))
    return (*bounds, num_rows)


def _share(weights: np.ndarray, num_parts: int) -> float:
    """The load of a range where each row that is heavier than that has one of its own, and the others divide the rest.

    No row counts for more. Otherwise a heavy row far behind would raise the mean of what is left, and the ranges before
    it would take all rows up to it.
    """
    heaviest = np.sort(np.partition(weights, len(weights) - num_parts)[-num_parts:])[::-1]
    rest, left = float(weights.sum()), num_parts
    for weight in heaviest[:-1].tolist():
        if weight <= rest / left:
            break
        rest, left = rest - weight, left - 1
    return rest / left
