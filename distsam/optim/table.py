"""Numbers of all measured cores as one row per network, and back; built once, so that a step only gathers.

Rows are padded to the largest network, because a padded sum adds in one order on every rank; adding by index would not
on a GPU.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distsam.balance import FirstPass
from distsam.tensornet import CoreNetwork


@dataclass(frozen=True)
class NetworkTable:
    """M networks of at most K cores, n cores together, among the N that are measured.

    Attributes:
        index: (M, K) place of each core in the measured vectors.
        counts: (M, K) False on padding, and for a core that does not move; None where every place counts.
        num_counting: (M, 1) float64, how many cores of each network count.
        members: (n,) places in the flattened (M, K) that are cores.
        targets: (n,) their places in the measured vectors; `places` the same on the host.
        start: the first of those places, where they follow each other and nothing is padded; else None.
    """

    index: Tensor
    counts: Tensor | None
    num_counting: Tensor
    members: Tensor
    targets: Tensor
    places: tuple[int, ...]
    start: int | None

    @classmethod
    def of(cls, networks: Sequence[CoreNetwork], first: FirstPass, is_moved: Sequence[bool]) -> "NetworkTable":
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
        return cls(
            torch.tensor([row + [row[0]] * (width - len(row)) for row in rows], device=device),
            None if bool(counts.all()) else counts.to(device),
            counts.sum(1, keepdim=True, dtype=torch.float64).to(device),
            torch.tensor(members, device=device),
            torch.tensor(places, device=device),
            tuple(places),
            places[0] if is_run else None,
        )

    def fold(self, values_N: Tensor) -> Tensor:
        """(M, K) the values of each network's cores; 0 where none counts. It may share memory with them."""
        if self.start is None:
            return self.mask(values_N[self.index])
        count = self.index.numel()
        run = values_N if count == len(values_N) else values_N[self.start : self.start + count]
        return self.mask(run.view(self.index.shape))

    def mask(self, values_MK: Tensor) -> Tensor:
        """The values, 0 where none counts."""
        return values_MK if self.counts is None else values_MK.where(self.counts, 0.0)

    def members_of(self, values_MK: Tensor) -> Tensor:
        """(n,) the values of the cores alone."""
        flat = values_MK.reshape(-1)
        return flat if len(flat) == len(self.places) else flat[self.members]

    def spread(self, values_n: Tensor) -> Tensor:
        """(M, K) the inverse of `members_of`, 0 on padding."""
        return values_n.new_zeros(self.index.numel()).index_copy_(0, self.members, values_n).view_as(self.index)

    def unfold(self, values_MK: Tensor, into_N: Tensor) -> Tensor:
        """(N,) a copy of `into_N` with the values of the cores in their places."""
        return into_N.index_copy(0, self.targets, self.members_of(values_MK))


class TableCache:
    """The table of some networks, built anew only where what is measured, or what moves, has changed."""

    def __init__(self, networks: Sequence[CoreNetwork]) -> None:
        self._networks = tuple(networks)
        self._position: Mapping[int, int] | None = None
        self._is_moved: tuple[bool, ...] = ()
        self._table: NetworkTable | None = None

    def get(self, first: FirstPass, is_moved: tuple[bool, ...]) -> NetworkTable:
        """The table for this pass."""
        if self._table is None or self._position is not first.position or self._is_moved != is_moved:
            self._table = NetworkTable.of(self._networks, first, is_moved)
            self._position, self._is_moved = first.position, is_moved
        return self._table
