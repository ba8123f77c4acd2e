"""Who contracts the cores of a network: one process that has them whole, or ranks that hold pieces of them."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn

from distsam.tensornet.contraction import contract, plan_contraction
from distsam.tensornet.entries import entries_of
from distsam.tensornet.planner import plan_entries
from distsam.tensornet.products import MultiplyPlans, RowsPlans, multiply, rows
from distsam.tensornet.spec import NetworkSpec

Cores = Sequence[nn.Parameter] | nn.ParameterList


class Contractor(Protocol):
    """Computes with the cores of one network, however they are placed; every result is whole, and differentiable."""

    def entries(self, cores: Cores, indices: Tensor) -> Tensor:
        """(B,) entries of T at (B, order) int64 positions."""
        ...

    def dense(self, cores: Cores) -> Tensor:
        """T."""
        ...

    def multiply(self, cores: Cores, vectors: Tensor, plans: MultiplyPlans) -> Tensor:
        """T as a linear map: see `products.multiply`."""
        ...

    def rows(self, cores: Cores, positions: Tensor, plans: RowsPlans) -> Tensor:
        """Slices of T: see `products.rows`."""
        ...


class WholeCores:
    """The Contractor of a network whose cores this process has whole.

    Args:
        spec: what the cores are.
    """

    def __init__(self, spec: NetworkSpec) -> None:
        self.spec = spec

    def entries(self, cores: Cores, indices: Tensor) -> Tensor:
        """By the plan that is cheapest for so many entries."""
        return entries_of(plan_entries(self.spec, indices.shape[0]), self.spec, list(cores), indices)

    def dense(self, cores: Cores) -> Tensor:
        """By the cheapest order."""
        spec = self.spec
        return contract(plan_contraction(spec.cores, spec.modes, spec.sizes), list(cores)).contiguous()

    def multiply(self, cores: Cores, vectors: Tensor, plans: MultiplyPlans) -> Tensor:
        """By the plan for so many vectors."""
        return multiply(plans, list(cores), vectors)

    def rows(self, cores: Cores, positions: Tensor, plans: RowsPlans) -> Tensor:
        """By the plan for so many rows."""
        return rows(plans, self.spec, list(cores), positions)
