"""Standard normal numbers that are a function of a key and a place: any block of them can be drawn alone.

A generator with a state hands its numbers out in one order, so that whoever wants the last draws all. Here the number
at a place is computed from the place, and the same bits come however a tensor is cut.
"""

from collections.abc import Iterator, Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor

# The constants of SplitMix64: the golden gamma, and of each round of the mix a shift and a factor.
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_ROUNDS = (
    (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)),
    (np.uint64(27), np.uint64(0x94D049BB133111EB)),
)
_LAST_SHIFT = np.uint64(31)
# So many at a time: they stay in the cache of a core, and take about 1 MiB.
CHUNK = 2**15


def bits_at(seed: int, places: np.ndarray) -> np.ndarray:
    """Element number `place` of the sequence that SplitMix64 makes from this seed, counted from 0.

    Args:
        seed: from 0 to 2^64 - 1.
        places: uint64, of any shape.

    Returns:
        uint64, of that shape. Different places give different bits: the mix maps no two states to one.

    Source: Steele, Lea, Flood, Fast Splittable Pseudorandom Number Generators, OOPSLA 2014, figure 16, with the mix
    of its variant 13. There the state moves by the golden gamma with every call; here it is computed.
    """
    # In arrays uint64 wraps round without a warning, which numpy gives for single numbers.
    state = np.add(places, np.uint64(1))
    state *= _GAMMA
    state += np.uint64(seed)
    shifted = np.empty_like(state)
    for shift, factor in _ROUNDS:
        np.right_shift(state, shift, out=shifted)
        state ^= shifted
        state *= factor
    np.right_shift(state, _LAST_SHIFT, out=shifted)
    state ^= shifted
    return state


def seed_of(key: int) -> int:
    """Where the sequence of a key begins. Mixed, because the sequences of neighbouring seeds are one, shifted."""
    return int(bits_at(key, np.zeros(1, dtype=np.uint64))[0])


def normals_at(seed: int, places: np.ndarray) -> Tensor:
    """Standard normal numbers, each by its place alone.

    The upper 52 bits n give the uniform number (n + 1/2) / 2^52, which float64 holds exactly and which is never 0 or 1
    (a half more than 53 bits would be rounded, to 1 in the worst case); the inverse of the normal distribution makes it
    normal. So no number is beyond 8.21, which one of 10^16 would be.

    Args:
        seed: of `seed_of`.
        places: uint64, of any shape.

    Returns:
        float64 on the CPU, of that shape; the same bits whatever else is asked for with it. Processors without fused
        multiplication give other last bits than those with it.
    """
    bits = bits_at(seed, places)
    bits >>= np.uint64(12)
    # Below 2^63 the bits are the same as int64, which is converted faster.
    uniform = bits.view(np.int64).astype(np.float64)
    uniform += 0.5
    uniform *= 2.0**-52
    numbers = torch.from_numpy(uniform)
    return torch.special.ndtri(numbers, out=numbers)


def blocks(shape: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    """Slices that cut a tensor of this shape into blocks of at most CHUNK elements, row by row."""
    if 0 in shape:
        return
    row = prod(shape[1:])
    num_rows = CHUNK // row
    for first in range(0, shape[0], max(1, num_rows)):
        if num_rows == 0:
            yield from ((slice(first, first + 1), *rest) for rest in blocks(shape[1:]))
        else:
            last = min(first + num_rows, shape[0])
            yield (slice(first, last), *(slice(0, size) for size in shape[1:]))


def places_of(block: Sequence[slice], strides: Sequence[int], first: int) -> np.ndarray:
    """Flat places of a block of a tensor with these strides, the tensor's first element being at `first`; uint64."""
    places = np.array(first, dtype=np.uint64)
    for part, stride in zip(block, strides, strict=True):
        along = np.arange(part.start, part.stop, dtype=np.uint64)
        places = np.add.outer(places, along * np.uint64(stride))
    return places
