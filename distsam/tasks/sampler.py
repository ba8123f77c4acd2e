"""The batch of a step as a function of (seed, step): nothing to save, the same for any number of ranks."""

from functools import lru_cache

import numpy as np


def batch_positions(step: int, num_entries: int, batch_size: int, seed: int) -> np.ndarray:
    """Positions of the global batch of a step, in the endless row of one shuffle of all entries per epoch.

    Every entry is met once an epoch. A batch that crosses the end of an epoch can hold an entry twice.

    Args:
        step: 0, 1, ...
        num_entries: number of entries to draw from.
        batch_size: number of entries in the batch.
        seed: of the shuffles.

    Returns:
        (batch_size,) int64 in [0, num_entries).
    """
    start, stop = step * batch_size, (step + 1) * batch_size
    pieces = []
    while start < stop:
        epoch, offset = divmod(start, num_entries)
        taken = min(stop - start, num_entries - offset)
        pieces.append(_shuffle(num_entries, seed, epoch)[offset : offset + taken])
        start += taken
    return np.concatenate(pieces)  # a copy: what the caller does to it leaves the cached shuffle alone


def rank_slice(positions: np.ndarray, rank: int, world_size: int) -> np.ndarray:
    """The part of a global batch that one rank takes: contiguous, sizes at most 1 apart, perhaps empty."""
    count = len(positions)
    return positions[count * rank // world_size : count * (rank + 1) // world_size]


# Two, because a batch may cross from one epoch to the next.
@lru_cache(maxsize=2)
def _shuffle(num_entries: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_entries)
