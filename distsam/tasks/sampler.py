"""Which examples a process takes in a step: a function of seed and step, so that nothing has to be saved."""

from functools import lru_cache

import numpy as np

from distsam.errors import ArgumentError
from distsam.tasks.task import TaskContext


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
        context = self.context
        if self.batch_size is None:
            most = max(1, self.num_examples // context.data_size)
            if count > most:
                raise ArgumentError("accumulate", f"{count} is more than the {most} examples of a rank; give fewer")
            batch = np.arange(self.num_examples)
        elif self.batch_size % count:
            raise ArgumentError(
                "accumulate",
                f"{count} does not divide batch_size, which is {self.batch_size}; give a number that divides it",
            )
        else:
            batch = batch_positions(step, self.num_examples, self.batch_size, context.seed)
        own = nth_part(batch, context.data_rank, context.data_size)
        return [nth_part(own, n, count) for n in range(count)]

    def mean_factor(self, count: int) -> float:
        """What a sum over one of `count` pieces is multiplied by, so that pieces of any size give the batch's mean.

        The mean of these multiples over all pieces of all ranks is the mean over the batch.
        """
        return count * self.context.data_size / (self.batch_size or self.num_examples)


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
        pieces.append(_shuffle(num_examples, seed, epoch)[offset : offset + taken])
        start += taken
    return np.concatenate(pieces)  # a copy: what the caller does to it leaves the cached shuffle alone


def nth_part(positions: np.ndarray, n: int, num_parts: int) -> np.ndarray:
    """Part n of `num_parts` contiguous parts, whose sizes differ by at most 1; it may be empty."""
    count = len(positions)
    return positions[count * n // num_parts : count * (n + 1) // num_parts]


# Two, because a batch may cross from one epoch to the next.
@lru_cache(maxsize=2)
def _shuffle(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_examples)
