"""Loads of the entries of a tensor those that a rank owns, by going through all of them a block at a time.

What one process would do with all entries at once (divide them, measure their mean, take their digest) is done here in
three passes, with the same result. Each rank makes them by itself, and comes to the same bounds as the others.

Memory of N entries of three modes in R rows, of which a rank owns M. That stays: 32 M, and 8 for each own training
entry. Meanwhile: N for the part that each entry is in, and 8 N more for a moment while the parts are drawn; 24 R while
rows are counted and divided; 100 M while own entries are put together; and a few blocks.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from distsam.errors import ArgumentError
from distsam.tasks.entries import Entries, EntriesDigest, refuse_duplicates, refuse_none
from distsam.tasks.observations import BLOCK, Block, HeldObservations, Observations
from distsam.tasks.routing import Owner, Routing, balanced_bounds, owner_of
from distsam.tasks.scaling import Spread, spread_of
from distsam.tasks.split import PARTS, Split, check_fibre_mode, draw_parts, parts_of, split_identity, split_of
from distsam.tasks.task import TaskContext

_TRAIN = PARTS.index("train")


class Routed(NamedTuple):
    """The entries that a rank owns, in the order of all; positions into them; and what it knows of the others."""

    entries: Entries
    split: Split
    routing: Routing


def load_routed(
    observations: Observations,
    context: TaskContext,
    observed: float = 0.3,
    validation: float = 0.1,
    fibre_mode: int | None = None,
    seed: int = 0,
) -> Routed:
    """The entries that this data rank owns, divided as `split_entries` divides all of them.

    Args:
        observations: all entries.
        context: whose `routed_mode`, data rank and data size say which are owned.
        observed, validation, fibre_mode, seed: as of `split_entries`.

    Returns:
        Parts, digest and order are those that one process finds; means and standard deviations are the same but for
        rounding, since they are joined from those of blocks.

    Raises:
        ArgumentError: as of `split_entries`, or what reading the entries says; `routed_mode` is no mode; `fibre_mode`
            of a tensor with 2^63 fibres or more, which have no number.
    """
    owner = owner_of(context, observations.shape)
    surveyed = _survey(observations)
    if fibre_mode is None:
        part_of_entry = draw_parts(surveyed.num_entries, observed, validation, None, seed)
    else:
        part_of_entry = _fibre_parts(observations, fibre_mode, observed, validation, seed)
    return _route(observations, surveyed, part_of_entry, owner)


def route_entries(entries: Entries, split: Split, context: TaskContext) -> Routed:
    """Of entries that are all in memory, those that this data rank owns.

    Args:
        entries: all of them.
        split: positions into `entries`.
        context: as of `load_routed`.

    Raises:
        ArgumentError: `routed_mode` is no mode.
    """
    owner = owner_of(context, entries.shape)
    observations = HeldObservations(entries)
    return _route(observations, _survey(observations), parts_of(split, len(entries)), owner)


@dataclass(frozen=True)
class _Survey:
    num_entries: int
    digest: EntriesDigest


def _survey(observations: Observations) -> _Survey:
    """First pass: how many entries there are, and the digest of their indices."""
    digest = EntriesDigest(observations.shape)
    num_rows = num_entries = 0
    for indices, values in observations.blocks():
        known, _ = _known(indices, values)
        digest.add(known)
        num_rows, num_entries = num_rows + len(indices), num_entries + len(known)
    refuse_none(num_entries, num_rows, observations.origin)
    return _Survey(num_entries, digest)


def _known(indices: np.ndarray, values: np.ndarray) -> Block:
    missing = np.isnan(values)
    return (indices[~missing], values[~missing]) if missing.any() else (indices, values)


def _known_blocks(observations: Observations) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(number of the first one, indices, values) of the entries that are not NaN."""
    first = 0
    for block in observations.blocks():
        indices, values = _known(*block)
        yield first, indices, values
        first += len(values)


def _route(observations: Observations, surveyed: _Survey, part_of_entry: np.ndarray, owner: Owner) -> Routed:
    """Second pass: rows, means, digest; then the third."""
    spreads = dict.fromkeys(PARTS, Spread())
    counts = np.zeros(observations.shape[owner.mode], dtype=np.int64)
    for first, indices, values in _known_blocks(observations):
        surveyed.digest.add(values)
        part = part_of_entry[first : first + len(values)]
        np.add.at(counts, indices[part == _TRAIN, owner.mode], 1)
        for number, name in enumerate(PARTS):
            spreads[name] = spreads[name].joined(spread_of(values[part == number]))
    bounds = balanced_bounds(counts, owner.num_ranges)
    sha256 = surveyed.digest.hexdigest(observations.modes)
    identity = split_identity(sha256, {name: _positions(part_of_entry, n) for n, name in enumerate(PARTS)})
    kept = _keep(observations, part_of_entry, bounds, owner)
    routing = Routing(owner, bounds, spreads, kept.most, kept.own_train, identity)
    return Routed(kept.entries, kept.split, routing)


def _positions(part_of_entry: np.ndarray, number: int) -> Iterator[np.ndarray]:
    for start in range(0, len(part_of_entry), BLOCK):
        yield start + np.flatnonzero(part_of_entry[start : start + BLOCK] == number)


class _Kept(NamedTuple):
    entries: Entries
    split: Split
    most: dict[str, int]
    own_train: np.ndarray


def _keep(observations: Observations, part_of_entry: np.ndarray, bounds: tuple[int, ...], owner: Owner) -> _Kept:
    """Third pass: the rank's own entries. In its range of rows no entry may be twice, whoever owns it."""
    num_parts = len(PARTS) + 1
    per_rank = np.zeros(owner.num_ranks * num_parts, dtype=np.int64)
    in_range: list[tuple[np.ndarray, ...]] = []
    first = num_entries = num_train = 0
    for indices, values in observations.blocks():
        present = ~np.isnan(values)
        # -1 for a missing entry, which may not be given twice either.
        part = np.full(len(values), -1, dtype=np.int8)
        part[present] = part_of_entry[num_entries : num_entries + int(present.sum())]
        num_entries += int(present.sum())
        ranges = np.searchsorted(bounds, indices[:, owner.mode], side="right") - 1
        owners = owner.owners(ranges, first)
        per_rank += np.bincount(owners * num_parts + part + 1, minlength=len(per_rank))
        chosen = np.flatnonzero(ranges == owner.range)
        # Of a training entry its number among all of them.
        train = num_train + np.cumsum(part == _TRAIN) - 1
        num_train += int((part == _TRAIN).sum())
        is_own = (owners[chosen] == owner.rank) & (part[chosen] >= 0)
        in_range.append((indices[chosen], values[chosen], part[chosen], is_own, first + chosen, train[chosen]))
        first += len(values)
    most = per_rank.reshape(owner.num_ranks, num_parts).max(axis=0)
    most_of = {name: int(most[number + 1]) for number, name in enumerate(PARTS)}
    indices, values, part, is_own, rows, train = (np.concatenate(column) for column in zip(*in_range, strict=True))
    in_range.clear()
    refuse_duplicates(indices, observations.shape, observations.origin, rows)
    if not is_own.all():
        indices, values, part, train = (column[is_own] for column in (indices, values, part, train))
    about = (observations.name, observations.modes, observations.value_name, observations.notes)
    entries = Entries(indices, values, observations.shape, *about)
    return _Kept(entries, split_of(part), most_of, train[part == _TRAIN])


def _fibre_parts(
    observations: Observations, fibre_mode: int, observed: float, validation: float, seed: int
) -> np.ndarray:
    """(N,) part of each entry, where fibres are divided: the units and their numbers are those of `split_entries`."""
    check_fibre_mode(fibre_mode, len(observations.shape))
    sizes = np.delete(observations.shape, fibre_mode)[::-1]
    if math.prod(sizes.tolist()) >= 2**63:
        raise ArgumentError(
            "fibre_mode", f"is {fibre_mode}, along which there are 2^63 fibres or more; divide single entries instead"
        )

    def fibres() -> Iterator[np.ndarray]:
        for _, indices, _ in _known_blocks(observations):
            # In the order of the last mode first, that of the numbers of units.
            yield np.ravel_multi_index(tuple(np.delete(indices, fibre_mode, axis=1)[:, ::-1].T), tuple(sizes))

    found = _distinct(fibres())
    part_of_fibre = draw_parts(len(found), observed, validation, fibre_mode, seed)
    return np.concatenate([part_of_fibre[np.searchsorted(found, block)] for block in fibres()])


def _distinct(blocks: Iterator[np.ndarray]) -> np.ndarray:
    """The different numbers, ascending; merged when as many have come as are known, so that few merges are needed."""
    known, waiting = np.empty(0, dtype=np.int64), list[np.ndarray]()
    for block in blocks:
        waiting.append(np.unique(block))
        if sum(map(len, waiting)) >= len(known):
            known, waiting = np.unique(np.concatenate([known, *waiting])), []
    return np.unique(np.concatenate([known, *waiting]))
