"""Numbers of all measured cores as one row per network, and back; built once, so that a step only gathers.

Rows are padded to the largest network, because a padded sum adds in one order on every rank; adding by index would not
on a GPU. On an accelerator the numbers are tensors; on CPU they can be arrays of numpy, whose calls on a few numbers
take a fraction of the time. Formulas use what both understand: operators, `sum(axis=, keepdims=)` and `table.xp`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distsam.balance import FirstPass
from distsam.balance.meter import Array
from distsam.tensornet import CoreNetwork


@dataclass(frozen=True)
class NetworkTable:
    """M networks of at most K cores, n cores together, among the N that are measured.

    Attributes:
        is_on_host: its arrays are numpy's, not torch's.
        index: (M, K) place of each core in the measured vectors.
        counts: (M, K) False on padding, and for a core that does not move; None where every place counts.
        num_counting: (M, 1) float64, how many cores of each network count.
        members: (n,) places in the flattened (M, K) that are cores.
        targets: (n,) their places in the measured vectors, as a tensor; `places` the same on the host.
        start: the first of those places, where they follow each other and nothing is padded; else None.
    """

    is_on_host: bool
    index: Any
    counts: Any
    num_counting: Any
    members: Any
    targets: Tensor
    places: tuple[int, ...]
    start: int | None

    @classmethod
    def of(
        cls, networks: Sequence[CoreNetwork], first: FirstPass, is_moved: Sequence[bool], on_host: bool
    ) -> "NetworkTable":
        """Look up the cores of `networks`, of which `is_moved` says for all n in order which ones count."""
        width = max(len(n.cores) for n in networks)
        rows = [[first.position[id(core)] for core in n.cores] for n in networks]
        places = [k for row in rows for k in row]
        members = [i * width + j for i, row in enumerate(rows) for j in range(len(row))]
        counts = torch.zeros(len(rows) * width, dtype=torch.bool)
        counts[members] = torch.tensor(is_moved)
        counts = counts.view(len(rows), width)
        device = first.gamma.device
        is_run = len(members) == len(rows) * width and places == list(range(places[0], places[0] + len(places)))

        def placed(values: Tensor) -> Array:
            return values.numpy() if on_host else values.to(device)

        return cls(
            on_host,
            placed(torch.tensor([row + [row[0]] * (width - len(row)) for row in rows])),
            None if bool(counts.all()) else placed(counts),
            placed(counts.sum(1, keepdim=True, dtype=torch.float64)),
            placed(torch.tensor(members)),
            torch.tensor(places, device=device),
            tuple(places),
            places[0] if is_run else None,
        )

    @property
    def xp(self) -> Any:
        """The module of its arrays, numpy or torch."""
        return np if self.is_on_host else torch

    def fold(self, values_N: Any) -> Any:
        """(M, K) the values of each network's cores; 0 where none counts. It may share memory with them."""
        if self.start is None:
            return self.mask(values_N[self.index])
        count = len(self.places)
        run = values_N if count == len(values_N) else values_N[self.start : self.start + count]
        return self.mask(run.reshape(self.index.shape))

    def mask(self, values_MK: Any) -> Any:
        """The values, 0 where none counts."""
        return values_MK if self.counts is None else self.xp.where(self.counts, values_MK, 0.0)

    def members_of(self, values_MK: Any) -> Any:
        """(n,) the values of the cores alone."""
        flat = values_MK.reshape(-1)
        return flat if len(flat) == len(self.places) else flat[self.members]

    def spread(self, values_n: Tensor) -> Any:
        """(M, K) the inverse of `members_of`, 0 on padding; from float64 on the host or the device."""
        flat = torch.zeros(prod(self.index.shape), dtype=torch.float64, device=self.targets.device)
        # Of a few bytes, which the driver takes before it returns: the host does not wait.
        values = values_n.to(flat.device, non_blocking=True)
        members = self.members if isinstance(self.members, Tensor) else torch.from_numpy(self.members)
        table = flat.index_copy_(0, members, values).view(self.index.shape)
        return table.numpy() if self.is_on_host else table

    def unfold(self, values_MK: Any, into_N: Tensor) -> Tensor:
        """(N,) a copy of `into_N` with the values of the cores in their places."""
        return into_N.index_copy(0, self.targets, torch.as_tensor(self.members_of(values_MK)))


class TableCache:
    """The table of some networks, built anew only where what is measured, or what moves, has changed.

    Args:
        networks: of the table.
        on_host: of a pass on CPU, compute in arrays of numpy.
    """

    def __init__(self, networks: Sequence[CoreNetwork], on_host: bool = False) -> None:
        self._networks = tuple(networks)
        self._on_host = on_host
        self._position: Mapping[int, int] | None = None
        self._is_moved: tuple[bool, ...] = ()
        self._table: NetworkTable | None = None

    def get(self, first: FirstPass, is_moved: tuple[bool, ...]) -> NetworkTable:
        """The table for this pass."""
        if self._table is None or self._position is not first.position or self._is_moved != is_moved:
            self._table = NetworkTable.of(self._networks, first, is_moved, self._on_host and first.is_on_cpu)
            self._position, self._is_moved = first.position, is_moved
        return self._table
