"""Which entries are trained on, which choose the model, and which only judge it."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from distsam.errors import ArgumentError
from distsam.tasks.entries import Entries

PARTS = ("train", "validation", "heldout")
_TRAIN, _VALIDATION, _HELDOUT = range(len(PARTS))


@dataclass(frozen=True, eq=False)
class Split:
    """Three disjoint sets of positions into the entries, together all of them; each int64 and ascending."""

    train: np.ndarray
    validation: np.ndarray
    heldout: np.ndarray


def split_entries(
    entries: Entries,
    observed: float = 0.3,
    validation: float = 0.1,
    fibre_mode: int | None = None,
    seed: int = 0,
) -> Split:
    """Holds out a share of the entries, then sets a share of the observed ones apart for validation.

    Another `validation` share leaves the held-out entries the same. Shares are rounded to whole units:
    entries, or fibres.

    Args:
        entries: the entries to divide.
        observed: share of the units that is not held out, above 0 and at most 1.
        validation: share of the observed units, at least 0 and below 1.
        fibre_mode: None divides single entries. A mode keeps together all entries whose indices differ in that mode
            alone (a fibre), so that no fibre is partly trained on.
        seed: of the division; nothing else, and no number of ranks, changes it.

    Raises:
        ArgumentError: an argument out of range, no training entry left, or no validation entry though asked for.
    """
    unit_of_entry = _units(entries, fibre_mode)
    part_of_unit = draw_parts(int(unit_of_entry.max()) + 1, observed, validation, fibre_mode, seed)
    return split_of(part_of_unit[unit_of_entry])


def split_of(part_of_entry: np.ndarray) -> Split:
    """The split in which entry n is in part number `part_of_entry[n]` of `PARTS`."""
    return Split(*(np.flatnonzero(part_of_entry == part) for part in range(len(PARTS))))


def parts_of(split: Split, num_entries: int) -> np.ndarray:
    """(num_entries,) int8 number of the part of `PARTS` that each entry is in; -1 for one in none."""
    part_of_entry = np.full(num_entries, -1, dtype=np.int8)
    for number, part in enumerate(PARTS):
        part_of_entry[getattr(split, part)] = number
    return part_of_entry


def draw_parts(num_units: int, observed: float, validation: float, fibre_mode: int | None, seed: int) -> np.ndarray:
    """(num_units,) int8 number of the part of `PARTS` that each unit is in; for the arguments see `split_entries`."""
    if not 0 < observed <= 1:
        raise ArgumentError("observed", f"is {observed}; it must be above 0 and at most 1")
    if not 0 <= validation < 1:
        raise ArgumentError("validation", f"is {validation}; it must be at least 0 and below 1")
    num_observed = round(observed * num_units)
    num_validation = round(validation * num_observed)
    what = "entries" if fibre_mode is None else "fibres"
    if num_observed - num_validation < 1:
        raise ArgumentError(
            "observed",
            f"{observed} with validation={validation} leaves nothing of {num_units} {what} to train on; raise observed "
            "or lower validation",
        )
    if validation > 0 and num_validation < 1:
        raise ArgumentError(
            "validation",
            f"{validation} of {num_observed} observed {what} leaves none to validate on; raise it, or set it to 0",
        )
    order = np.random.default_rng(seed).permutation(num_units)
    part = np.full(num_units, _HELDOUT, dtype=np.int8)
    part[order[:num_observed]] = _TRAIN
    part[order[:num_validation]] = _VALIDATION
    return part


def split_identity(entries_sha256: str, positions: Mapping[str, Iterable[np.ndarray]]) -> str:
    """Hexadecimal digest of entries and of the part that each is in.

    Args:
        entries_sha256: `Entries.sha256` of all entries.
        positions: each part of `PARTS` -> the ascending int64 numbers of its entries, in blocks of any size.
    """
    digest = hashlib.sha256(entries_sha256.encode())
    for part in PARTS:
        digest.update(part.encode())
        for block in positions[part]:
            digest.update(np.ascontiguousarray(block).data)
    return digest.hexdigest()


def check_fibre_mode(fibre_mode: int, order: int) -> None:
    """ArgumentError where a tensor of this order has no such mode."""
    if not 0 <= fibre_mode < order:
        raise ArgumentError("fibre_mode", f"is {fibre_mode}; the tensor has {order} modes: it must be 0 to {order - 1}")


def _units(entries: Entries, fibre_mode: int | None) -> np.ndarray:
    """(N,) number of the unit that each entry belongs to; the units are 0, 1, ... without gaps."""
    if fibre_mode is None:
        return np.arange(len(entries))
    check_fibre_mode(fibre_mode, len(entries.shape))
    return _group_rows(np.delete(entries.indices, fibre_mode, axis=1))


def _group_rows(rows: np.ndarray) -> np.ndarray:
    """A number for each row, equal for equal rows, in the rows' lexicographic order."""
    order = np.lexsort(rows.T)
    is_new = (rows[order[1:]] != rows[order[:-1]]).any(axis=1)
    groups = np.zeros(len(rows), dtype=np.int64)
    groups[order[1:]] = np.cumsum(is_new)
    return groups
