"""Where to look for a good completion when its user does not say: the default space of a search."""

from collections.abc import Mapping
from math import prod
from typing import Any

from distsam.train.seams import Search
from distsam.train.studies.space import Space

# Parameters of the network, as a share of the entries that it is fitted to. It stands for the bond dimension or the
# ranks, which say little by themselves: the same share is a bond of 5 for one tensor and of 50 for another.
_SIZE = "network.size"
_FORMAT = "network.format"
_SIZES = Space("log", 0.005, 3.0)
_FIRST_SIZE = 1.0
# River levels with floods, 1,775 x 48 x 12, 60 % known: a search that began without it chose a bond of 256 and came to
# an RMSE of 3.95 on hidden entries; with it, and fewer evaluations, a bond of 4 and 3.52.
_SMALL_SIZE = 0.015
_LARGEST_BOND = 256
# The central core of a Tucker network grows with the power of the order.
_MAX_TUCKER_ORDER = 4


def spaces_of_completion(config: Any, task: Any) -> dict[str, Space]:
    """The keys that a search varies when none are given, `network.size` for the size of the network among them."""
    found: dict[str, Space] = {}
    network = config.network
    if network.format != "einsum":
        found[_SIZE] = _SIZES
    if network.format in ("cp", "tucker") and len(task.entries.shape) <= _MAX_TUCKER_ORDER:
        found[_FORMAT] = Space("choice", choices=("cp", "tucker"))
    return found


def settings_of_completion(values: Mapping[str, Any], config: Any, task: Any) -> dict[str, Any]:
    """`values` with the size of the network as bond dimension or ranks."""
    if _SIZE not in values:
        return dict(values)
    settings = {key: value for key, value in values.items() if key != _SIZE}
    format_ = settings.get(_FORMAT, config.network.format)
    num_parameters = values[_SIZE] * len(task.split.train)
    if format_ == "tucker":
        ranks = _ranks(task.entries.shape, num_parameters)
        return {**settings, "network.ranks": ranks, "network.bond_dim": None}
    bond = _bond(format_, task.entries.shape, num_parameters)
    return {**settings, "network.bond_dim": bond, "network.ranks": None}


def first_of_completion(config: Any, task: Any) -> list[dict[str, Any]]:
    """The other format, as large as its entries bear, then a small network: which of both formats fits better, and
    whether a large network fits what does not hold elsewhere, are the first things to know."""
    if _FORMAT not in spaces_of_completion(config, task):
        return []
    own = config.network.format
    return [{_FORMAT: "tucker" if own == "cp" else "cp", _SIZE: _FIRST_SIZE}, {_FORMAT: own, _SIZE: _SMALL_SIZE}]


def _bond(format_: str, shape: tuple[int, ...], num_parameters: float) -> int:
    """The bond of a network of about so many parameters, that this shape allows."""
    # A factor of a CP network has I r parameters, a core inside a chain I r^2.
    bond = (num_parameters / sum(shape)) ** (1.0 if format_ == "cp" else 0.5)
    allowed = prod(shape) // max(shape) if format_ == "cp" else min(shape[0], shape[-1])
    return max(1, min(round(bond), allowed, _LARGEST_BOND))


def _ranks(shape: tuple[int, ...], num_parameters: float) -> list[int]:
    """The largest ranks min(I_k, r) of so many parameters: small modes are kept whole, large ones are cut alike."""
    best = [1] * len(shape)
    for rank in range(2, min(max(shape), _LARGEST_BOND) + 1):
        ranks = _allowed([min(size, rank) for size in shape])
        if prod(ranks) + sum(size * r for size, r in zip(shape, ranks, strict=True)) > num_parameters:
            break
        best = ranks
    return best


def _allowed(ranks: list[int]) -> list[int]:
    """No rank above the product of the others, which could not be used."""
    return [min(rank, prod(ranks) // rank) for rank in ranks]


SEARCH = Search(spaces_of_completion, settings_of_completion, first_of_completion)
