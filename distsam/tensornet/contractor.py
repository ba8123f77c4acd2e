"""Who contracts the cores of a network: one process that has them whole, or ranks that hold pieces of them."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn

from distsam.errors import ArgumentError
from distsam.tensornet import kernels
from distsam.tensornet.contraction import contract, plan_contraction
from distsam.tensornet.entries import entries_at, entries_of
from distsam.tensornet.planner import plan_entries
from distsam.tensornet.product_plans import plan_product
from distsam.tensornet.products import MultiplyPlans, RowsPlans, multiply, product_of, rows
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
        max_peak_bytes: ceiling of what one evaluation makes, forward and backward, its result and the gradients of
            its inputs and of the cores included; None: none.

    Raises:
        ArgumentError: (of every call) about "max_peak_bytes": nothing stays below it.
    """

    def __init__(self, spec: NetworkSpec, max_peak_bytes: int | None = None) -> None:
        self.spec, self.max_peak_bytes = spec, max_peak_bytes

    def entries(self, cores: Cores, indices: Tensor) -> Tensor:
        """By the plan that is cheapest for so many entries."""
        plan = plan_entries(self.spec, indices.shape[0], None, self._ceiling(cores), self._fused(cores))
        # Without a ceiling nobody asks what the plan takes, which is not found at once.
        if self.max_peak_bytes is not None:
            self._check(plan.peak_elements, cores, f"{indices.shape[0]} entries need")
        return entries_of(plan, self.spec, list(cores), indices)

    def dense(self, cores: Cores) -> Tensor:
        """By the cheapest order."""
        spec = self.spec
        plan = plan_contraction(spec.cores, spec.modes, spec.sizes)
        self._check(spec.num_parameters + 3 * sum(plan.intermediates), cores, "the full tensor needs", "")
        return contract(plan, list(cores)).contiguous()

    def multiply(self, cores: Cores, vectors: Tensor, plans: MultiplyPlans) -> Tensor:
        """By the plan for so many vectors."""
        if (ceiling := self._ceiling(cores)) is None:
            return multiply(plans, list(cores), vectors)
        plan = plan_product(self.spec, plans.modes, max(len(vectors), 1), ceiling)
        self._check(plan.peak_elements, cores, f"{len(vectors)} vectors need")
        return product_of(plan, list(cores), vectors)

    def rows(self, cores: Cores, positions: Tensor, plans: RowsPlans) -> Tensor:
        """By the plan for so many rows."""
        if (ceiling := self._ceiling(cores)) is None:
            return rows(plans, self.spec, list(cores), positions)
        plan = plan_entries(self.spec, len(positions), plans.modes, ceiling)
        self._check(plan.peak_elements, cores, f"{len(positions)} rows need")
        return entries_at(plan, self.spec, list(cores), dict(zip(plans.modes, positions.unbind(1), strict=True)))

    def _ceiling(self, cores: Cores) -> int | None:
        return None if self.max_peak_bytes is None else self.max_peak_bytes // cores[0].itemsize

    def _fused(self, cores: Cores) -> bool:
        return kernels.serve(cores[0].dtype, cores[0].device)

    def _check(
        self, peak_elements: int, cores: Cores, who: str, otherwise: str = ", or ask for fewer at a time"
    ) -> None:
        if self.max_peak_bytes is not None and peak_elements * cores[0].itemsize > self.max_peak_bytes:
            least = peak_elements * cores[0].itemsize
            problem = f"is {self.max_peak_bytes} bytes; {who} at least {least}, forward and backward: allow that"
            raise ArgumentError("max_peak_bytes", problem + otherwise)
