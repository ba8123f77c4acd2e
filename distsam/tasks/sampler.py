"""Which examples a process takes in a step: a function of seed and step, so that nothing has to be saved."""

from functools import lru_cache
from itertools import pairwise

import numpy as np

from distsam.errors import ArgumentError
from distsam.tasks.task import TaskContext

# Examples looked up at a time: bounds what is needed beside the order of an epoch.
_CHUNK = 2**20


class Sampler:
    """Cuts the batch of every step over the data ranks, and each rank's part into pieces.

    Args:
        num_examples: number of examples to draw from.
        batch_size: examples in the batch of a step, over all ranks; None takes all examples in every step.
        context: seed of the shuffles, data rank and data size.

    Raises:
        ArgumentError: `batch_size` is not between 1 and `num_examples`.
    """

    def __init__(self, num_examples: int, batch_size: int | None, context: TaskContext) -> None:
        if batch_size is not None and not 1 <= batch_size <= num_examples:
            raise ArgumentError(
                "batch_size",
                f"is {batch_size}; it must be 1 to {num_examples}, the number of training examples, or null for all",
            )
        self.num_examples, self.batch_size, self.context = num_examples, batch_size, context

    def pieces(self, step: int, count: int) -> list[np.ndarray]:
        """Positions of the examples in each of this rank's `count` pieces of the batch of a step.

        Sizes differ by at most 1 over the pieces of all ranks; a piece may be empty.

        Returns:
            `count` int64 arrays of positions in [0, num_examples).

        Raises:
            ArgumentError: about "accumulate": `count` does not divide the batch size that was asked for; or it is more
                than a rank has of the full batch.
        """
        self.check_count(count)
        context = self.context
        if self.batch_size is None:
            batch = np.arange(self.num_examples)
        else:
            batch = batch_positions(step, self.num_examples, self.batch_size, context.seed)
        own = nth_part(batch, context.data_rank, context.data_size)
        return [nth_part(own, n, count) for n in range(count)]

    def check_count(self, count: int) -> None:
        """ArgumentError where the batch cannot be cut into so many pieces; see `pieces`."""
        if self.batch_size is None:
            most = max(1, self.num_examples // self.context.data_size)
            if count > most:
                raise ArgumentError("accumulate", f"{count} is more than the {most} examples of a rank; give fewer")
        elif self.batch_size % count:
            raise ArgumentError(
                "accumulate",
                f"{count} does not divide batch_size, which is {self.batch_size}; give a number that divides it",
            )

    def mean_factor(self, count: int) -> float:
        """What a sum over one of `count` pieces is multiplied by, so that pieces of any size give the batch's mean.

        The mean of these multiples over all pieces of all ranks is the mean over the batch.
        """
        return count * self.context.data_size / (self.batch_size or self.num_examples)


class RoutedSampler:
    """Takes, of the batch of every step, the examples that this process holds, in the order of the batch.

    The batches, and the pieces that they are cut into, are those of one process that holds all examples: of a piece
    every process takes its own examples, so that their number differs between processes and may be 0.

    Memory: the order of an epoch is made when its first step is asked for, 8 bytes an example, and forgotten; 4 to 8
    bytes more for each example are needed meanwhile. Kept are, of the process's own examples, their places in that
    order: 12 bytes each, or 16 where there are more than 2^31.

    Args:
        num_examples, batch_size, context: as of `Sampler`, over all ranks.
        own: (M,) int64, ascending: which of the examples this process holds.

    Raises:
        ArgumentError: as `Sampler`.
    """

    def __init__(self, num_examples: int, batch_size: int | None, context: TaskContext, own: np.ndarray) -> None:
        self._whole, self._own = Sampler(num_examples, batch_size, context), own
        self.num_examples, self.batch_size = num_examples, batch_size
        self._epoch, self._places, self._examples = -1, own[:0], own[:0]

    def pieces(self, step: int, count: int) -> list[np.ndarray]:
        """Of each of the `count` pieces of the batch of a step, the examples that this process holds.

        Returns:
            `count` integer arrays of positions in `own`.

        Raises:
            ArgumentError: as `Sampler.pieces`.
        """
        self._whole.check_count(count)
        if self.batch_size is None:
            cuts = np.searchsorted(self._own, [self.num_examples * n // count for n in range(count + 1)])
            return [np.arange(start, stop) for start, stop in pairwise(cuts)]
        size = self.batch_size // count
        first = step * self.batch_size
        return [self._between(first + n * size, first + (n + 1) * size) for n in range(count)]

    def mean_factor(self, count: int) -> float:
        """As `Sampler.mean_factor`: the mean of these multiples over all pieces of all ranks is the batch's."""
        return self._whole.mean_factor(count)

    def _between(self, start: int, stop: int) -> np.ndarray:
        """Own examples at the places from start to stop, which count through all epochs."""
        found = []
        while start < stop:
            epoch, offset = divmod(start, self.num_examples)
            taken = min(stop - start, self.num_examples - offset)
            self._enter(epoch)
            low, high = np.searchsorted(self._places, [offset, offset + taken])
            found.append(self._examples[low:high])
            start += taken
        return np.concatenate(found)

    def _enter(self, epoch: int) -> None:
        """Find the places of the own examples in the order of an epoch."""
        if epoch == self._epoch:
            return
        self._epoch, self._places, self._examples = -1, self._own[:0], self._own[:0]  # never two epochs at a time
        order = _shuffle(self.num_examples, self._whole.context.seed, epoch)
        number = np.int32 if len(self._own) < 2**31 else np.int64
        own_number = np.full(self.num_examples, -1, dtype=number)
        own_number[self._own] = np.arange(len(self._own), dtype=number)
        places, examples, filled = np.empty(len(self._own), np.int64), np.empty(len(self._own), number), 0
        for start in range(0, self.num_examples, _CHUNK):
            numbers = own_number[order[start : start + _CHUNK]]
            found = np.flatnonzero(numbers >= 0)
            places[filled : filled + len(found)] = start + found
            examples[filled : filled + len(found)] = numbers[found]
            filled += len(found)
        self._epoch, self._places, self._examples = epoch, places, examples


def batch_positions(step: int, num_examples: int, batch_size: int, seed: int) -> np.ndarray:
    """Positions of the batch of a step: all examples in a new order every epoch, cut into batches without a gap.

    Every example comes once an epoch. A batch that crosses the end of an epoch can hold an example twice.

    Args:
        step: 0, 1, ...
        num_examples: number of examples to draw from.
        batch_size: number of examples in the batch.
        seed: of the shuffles.

    Returns:
        (batch_size,) int64 in [0, num_examples).
    """
    start, stop = step * batch_size, (step + 1) * batch_size
    pieces = []
    while start < stop:
        epoch, offset = divmod(start, num_examples)
        taken = min(stop - start, num_examples - offset)
        pieces.append(_kept_shuffle(num_examples, seed, epoch)[offset : offset + taken])
        start += taken
    return np.concatenate(pieces)  # a copy: what the caller does to it leaves the cached shuffle alone


def nth_part(positions: np.ndarray, n: int, num_parts: int) -> np.ndarray:
    """Part n of `num_parts` contiguous parts, whose sizes differ by at most 1; it may be empty."""
    count = len(positions)
    return positions[count * n // num_parts : count * (n + 1) // num_parts]


def _shuffle(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_examples)


# Two, because a batch may cross from one epoch to the next.
_kept_shuffle = lru_cache(maxsize=2)(_shuffle)
