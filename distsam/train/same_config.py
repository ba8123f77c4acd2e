"""Have all ranks of a run the same config and libraries? Else their next collectives would not fit together."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from distsam.errors import InputError, SharedInputError
from distsam.sharding.collectives import gather_pieces, is_distributed
from distsam.tensornet.cost import COSTS_FILE, costs_in_use
from distsam.tensornet.kernels import KERNELS, asked_for
from distsam.train.agreement import from_rank
from distsam.train.config import Config
from distsam.train.same_run import MOVABLE_KEYS
from distsam.train.secrets import Place
from distsam.train.versions import versions

# What may be another on each machine: where data lie, of which `identify` compares the content, and how many threads a
# rank takes there. Not run.dir: every rank writes its piece of each checkpoint there.
MAY_DIFFER = frozenset([*MOVABLE_KEYS, "train.num_threads"])

# Of distsam depends which collectives there are, of torch what they send, of numpy which entries a batch holds.
_LIBRARIES = ("distsam", "torch", "numpy")
_MOST_NAMED = 4
_LONGEST_VALUE = 60
_ABSENT = "absent"
_HIDDEN = "not shown"


def check_same_config(config: Config) -> None:
    """Every rank has the config and the libraries of rank 0.

    Secrets count as the text that the file has in their place: each machine may have a token of its own.

    Collectives: one all_gather of 32 bytes a rank over the world; every rank calls it, whatever its config. Where they
    differ, two object broadcasts more. None without a process group.

    Raises:
        InputError: DISTSAM_COSTS or DISTSAM_KERNELS cannot be used.
        SharedInputError: the first rank that differs, and in what; the same on every rank.
    """
    if is_distributed():
        _compare(described(config))
    # Once all have the same, so that none ends alone.
    costs_in_use(os.environ.get(COSTS_FILE))
    asked_for(os.environ.get(KERNELS))


def _compare(own: dict[str, dict[str, str]]) -> None:
    digest = hashlib.sha256(json.dumps(own["values"], sort_keys=True).encode()).digest()
    digests = gather_pieces(torch.tensor([list(digest)], dtype=torch.uint8), None)
    others = (digests != digests[0]).any(dim=1).nonzero()
    if len(others):
        rank = int(others[0])
        first, other = from_rank(0, lambda: own), from_rank(rank, lambda: own)
        raise SharedInputError(difference(first, other, rank))


def described(config: Config) -> dict[str, dict[str, str]]:
    """What ranks must have in common, and where secrets stand, as texts that may be sent and said.

    Returns:
        "values": key -> value, and "the version of torch" and so on -> version. "secrets": key -> text of the file.
    """
    found = versions()
    values = {f"the version of {name}": found[name] for name in _LIBRARIES}
    values.update(_environment())
    secrets = {}
    for place, value in _leaves(config.shown()):
        key = ".".join(map(str, place))
        if ".".join(map(str, place[:2])) not in MAY_DIFFER:
            values[key] = repr(value)
            if any(secret[: len(place)] == place for secret in config.secrets):
                secrets[key] = repr(value)
    return {"values": values, "secrets": secrets}


def _environment() -> dict[str, str]:
    """Variables from which plans follow, and of plans of cut cores which collectives there are."""
    return {
        COSTS_FILE: _or_refusal(lambda: repr(tuple(costs_in_use(os.environ.get(COSTS_FILE))))),
        KERNELS: _or_refusal(lambda: "numba" if asked_for(os.environ.get(KERNELS)) else "torch"),
    }


def _or_refusal(read: Callable[[], str]) -> str:
    try:
        return read()
    except InputError as error:
        return str(error)


def difference(first: Mapping[str, dict[str, str]], other: Mapping[str, dict[str, str]], rank: int) -> str:
    """In what `rank`, which is described by `other`, differs from rank 0, with the values of both."""
    parts = []
    for key in dict.fromkeys([*first["values"], *other["values"]]):
        here, there = first["values"].get(key, _ABSENT), other["values"].get(key, _ABSENT)
        if here != there:
            hides = key in first["secrets"] or key in other["secrets"]
            here, there = (_said(side, key, hides) for side in (first, other))
            parts.append(f"{key} is {there} there and {here} on rank 0")
    more = f"; and {len(parts) - _MOST_NAMED} more" if len(parts) > _MOST_NAMED else ""
    return (
        f"rank {rank} differs from rank 0: {'; '.join(parts[:_MOST_NAMED])}{more}; start every rank with the same "
        "config, overrides and installation"
    )


def _said(side: Mapping[str, dict[str, str]], key: str, hides: bool) -> str:
    """The value of a key for people. A secret of one rank may stand on another as if it were none."""
    value = side["values"].get(key, _ABSENT)
    if hides and value != _ABSENT:
        return side["secrets"].get(key, _HIDDEN)
    return value if len(value) <= _LONGEST_VALUE else f"{value[:_LONGEST_VALUE]}..."


def _leaves(content: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Place and value of all that is no mapping."""
    if isinstance(content, Mapping) and content:
        for name, value in content.items():
            yield from _leaves(value, (*place, name))
    else:
        yield place, content
