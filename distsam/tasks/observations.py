"""Entries of a tensor that are gone through in blocks, so that nobody needs to hold them all."""

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from distsam.tasks.entries import Entries, Origin, check_dense
from distsam.tasks.labels import Mode

Block = tuple[np.ndarray, np.ndarray]
# Entries a block: 8 MB of a tensor of three modes.
BLOCK = 2**18


class Observations(Protocol):
    """Entries as they stand in their source, of which a NaN marks a missing one.

    Attributes:
        shape, name, modes, value_name, notes: as of `Entries`.
        origin: what to name the source by in messages.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def name(self) -> str: ...
    @property
    def modes(self) -> tuple[Mode, ...]: ...
    @property
    def value_name(self) -> str: ...
    @property
    def notes(self) -> tuple[str, ...]: ...
    @property
    def origin(self) -> Origin: ...

    def blocks(self) -> Iterator[Block]:
        """(n, order) int64 indices and (n,) float64 values, n at most `BLOCK`; the same at every call, in order."""
        ...


class HeldObservations:
    """Entries that are in memory.

    Args:
        entries: all of them.
    """

    def __init__(self, entries: Entries) -> None:
        self._entries = entries
        self.shape, self.name, self.modes = entries.shape, entries.name, entries.modes
        self.value_name, self.notes, self.origin = entries.value_name, entries.notes, Origin("entries")

    def blocks(self) -> Iterator[Block]:
        """See `Observations`."""
        for start in range(0, len(self._entries), BLOCK):
            yield self._entries.indices[start : start + BLOCK], self._entries.values[start : start + BLOCK]


class DenseObservations:
    """The entries of a dense array in C order; their indices are made block by block.

    Args:
        tensor: as of `entries_from_dense`.
        name: what to call the tensor.
        origin: where it came from.

    Raises:
        ArgumentError: as `entries_from_dense`.
    """

    modes: tuple[Mode, ...] = ()
    value_name = "value"
    notes: tuple[str, ...] = ()

    def __init__(self, tensor: np.ndarray, *, name: str, origin: Origin) -> None:
        self._values = check_dense(tensor, origin).reshape(-1)
        self.shape, self.name, self.origin = tensor.shape, name, origin

    def blocks(self) -> Iterator[Block]:
        """See `Observations`."""
        for start in range(0, len(self._values), BLOCK):
            values = self._values[start : start + BLOCK]
            places = np.unravel_index(np.arange(start, start + len(values)), self.shape)
            yield np.stack(places, axis=1), values
