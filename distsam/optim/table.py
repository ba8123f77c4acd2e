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
        counts: (M, K) False on padding, and for a core that does not move.
        members: (n,) places in the flattened (M, K) that are cores.
        targets: (n,) their places in the measured vectors.
    """

    index: Tensor
    counts: Tensor
    members: Tensor
    targets: Tensor

    @classmethod
    def of(cls, networks: Sequence[CoreNetwork], first: FirstPass, is_moved: Sequence[bool]) -> "NetworkTable":
        """Look up the cores of `networks`, of which `is_moved` says for all n in order which ones count."""
        width = max(len(n.cores) for n in networks)
        rows = [[first.position[id(core)] for core in n.cores] for n in networks]
        members = [i * width + j for i, row in enumerate(rows) for j in range(len(row))]
        counts = torch.zeros(len(rows) * width, dtype=torch.bool)
        counts[members] = torch.tensor(is_moved)
        device = first.gamma.device
        return cls(
            torch.tensor([row + [row[0]] * (width - len(row)) for row in rows], device=device),
            counts.view(len(rows), width).to(device),
            torch.tensor(members, device=device),
            torch.tensor([k for row in rows for k in row], device=device),
        )

    def fold(self, values_N: Tensor) -> Tensor:
        """(M, K) the values of each network's cores; 0 where none counts."""
        return values_N[self.index].where(self.counts, 0.0)

    def mean(self, values_MK: Tensor) -> Tensor:
        """(M, 1) mean over each network's cores that count, of values that are 0 elsewhere."""
        return values_MK.sum(1, keepdim=True) / self.counts.sum(1, keepdim=True)

    def members_of(self, values_MK: Tensor) -> Tensor:
        """(n,) the values of the cores alone."""
        return values_MK.reshape(-1)[self.members]

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
