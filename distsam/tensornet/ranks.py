"""How large the bonds of a weight are: a rank as one number, a list, a compression ratio, or the full bond."""

import warnings
from collections.abc import Callable, Sequence
from math import isfinite, isqrt, nan, prod
from typing import Any

from distsam.errors import ArgumentError, renaming
from distsam.tensornet.arguments import checked_list, checked_size, is_list
from distsam.tensornet.formats import cp, tr, tt, tt_matrix, tucker
from distsam.tensornet.spec import NetworkSpec

Shape = tuple[int, ...]
# What a user may give: a number for all bonds, one for each, "ratio:4" (a quarter of the dense parameters), "full".
Rank = int | Sequence[int] | str
WEIGHT_FORMATS = ("cp", "tucker", "tt", "tt_matrix", "tr")


def weight_spec(format: str, out_shape: Shape, in_shape: Shape, rank: Rank) -> NetworkSpec:
    """The network of a weight whose dims are cut into these modes: those of the output first, then of the input.

    Args:
        format: "cp", "tucker", "tt" (a train along all modes), "tt_matrix" (a train whose cores carry an output
            and an input mode each), or "tr".
        out_shape, in_shape: the modes; of one number for "tt_matrix".
        rank: one number for every bond, clamped with a warning to what each allows; a list with a number for each;
            "ratio:4" for the largest number with which the cores have at most a quarter of the dense weight's
            parameters; "full" (also a ratio of at most 1) for bonds that can hold any weight.

    Raises:
        ArgumentError: an unknown format, a rank that is none, a list of another length or above what is allowed, or a
            ratio that not even bonds of 1 reach.
    """
    if format not in WEIGHT_FORMATS:
        raise ArgumentError("format", f"is {format!r}; use one of {', '.join(WEIGHT_FORMATS)}")
    if format == "tt_matrix" and len(out_shape) != len(in_shape):
        problem = f"cuts the output into {list(out_shape)} and the input into {list(in_shape)}"
        raise ArgumentError("format", f"tt_matrix {problem}; both need as many factors")
    build = _builder(format, out_shape, in_shape)
    if isinstance(rank, str):
        return _spec_of_word(rank, format, out_shape, in_shape)
    if is_list(rank):
        with renaming({"bond_dim": "rank", "ranks": "rank"}):
            return build(_checked_list(rank, format, out_shape, in_shape))
    number = checked_size(rank, "rank")
    clamped_rank(number, max(_uniform(format, out_shape, in_shape, None)), stacklevel=4)
    return build(_uniform(format, out_shape, in_shape, number))


def clamped_rank(rank: int, largest: int, stacklevel: int = 3) -> int:
    """`rank`, or `largest` with a warning if that is less."""
    if rank > largest:
        problem = f"rank {rank} is above what the weight can use; it is clamped to {largest}"
        warnings.warn(problem, stacklevel=stacklevel)
    return min(rank, largest)


def _builder(format: str, out_shape: Shape, in_shape: Shape) -> Callable[[Sequence[int]], NetworkSpec]:
    shape = (*out_shape, *in_shape)

    def build(bonds: Sequence[int]) -> NetworkSpec:
        match format:
            case "cp":
                return cp(shape, bonds[0])
            case "tucker":
                return tucker(shape, bonds)
            case "tt":
                return tt(shape, bonds)
            case "tt_matrix":
                return tt_matrix(out_shape, in_shape, bonds)
            case _:
                return tr(shape, bonds)

    return build


def _uniform(format: str, out_shape: Shape, in_shape: Shape, rank: int | None) -> list[int]:
    """The bonds, each `rank` or what it can use at most; None asks for the most of one size."""
    shape = (*out_shape, *in_shape)
    total = prod(shape)
    if format == "tr":
        # Both bonds of a core together can use what the other modes offer.
        most = isqrt(total // max(shape))
        return [most if rank is None else min(rank, most)] * len(shape)
    return [most if rank is None else min(rank, most) for most in _full(format, out_shape, in_shape)]


def _full(format: str, out_shape: Shape, in_shape: Shape) -> list[int]:
    """The bonds with which the network can hold any weight of this shape."""
    shape = (*out_shape, *in_shape)
    total = prod(shape)
    match format:
        case "cp":
            return [total // max(shape)]
        case "tucker":
            return [min(size, total // size) for size in shape]
        case "tr":
            # A ring with one bond of 1 is a train.
            return [1, *_train_limits(shape)]
        case "tt":
            return _train_limits(shape)
        case _:
            return _train_limits(tuple(o * i for o, i in zip(out_shape, in_shape, strict=True)))


def _train_limits(steps: Shape) -> list[int]:
    return [min(prod(steps[:k]), prod(steps[k:])) for k in range(1, len(steps))]


def _checked_list(rank: Any, format: str, out_shape: Shape, in_shape: Shape) -> list[int]:
    given = checked_list(rank, "rank")
    length = len(_full(format, out_shape, in_shape))
    if len(given) != length:
        raise ArgumentError("rank", f"{given} has {len(given)} numbers; {format} of this shape needs {length}")
    return [checked_size(size, f"rank[{k}]") for k, size in enumerate(given)]


def _spec_of_word(word: str, format: str, out_shape: Shape, in_shape: Shape) -> NetworkSpec:
    build = _builder(format, out_shape, in_shape)
    ratio = 1.0 if word == "full" else _ratio_of(word)
    if ratio <= 1:
        return build(_full(format, out_shape, in_shape))
    allowed = prod(out_shape) * prod(in_shape) / ratio
    low, high = 0, max(_uniform(format, out_shape, in_shape, None)) + 1
    while high - low > 1:
        middle = (low + high) // 2
        fits = build(_uniform(format, out_shape, in_shape, middle)).num_parameters <= allowed
        low, high = (middle, high) if fits else (low, middle)
    if low == 0:
        smallest = build(_uniform(format, out_shape, in_shape, 1)).num_parameters
        most = prod(out_shape) * prod(in_shape) / smallest
        raise ArgumentError("rank", f"is {word!r}; with bonds of 1 this weight reaches ratio:{most:.4g}, not more")
    return build(_uniform(format, out_shape, in_shape, low))


def _ratio_of(word: str) -> float:
    kind, _, number = word.partition(":")
    try:
        ratio = float(number) if kind == "ratio" else nan
    except ValueError:
        ratio = nan
    if not (isfinite(ratio) and ratio > 0):
        raise ArgumentError("rank", f'is {word!r}; use a number, a list of numbers, "ratio:4" or "full"')
    return ratio
