"""A network as a linear map: contracted with a batch of vectors, or with some modes fixed for each of a batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from distsam.tensornet.contraction import Indices, contract
from distsam.tensornet.entries import entries_at
from distsam.tensornet.planner import EntryPlan, plan_entries
from distsam.tensornet.product_plans import ProductPlan, plan_product
from distsam.tensornet.sliced import BATCH, contract_sliced
from distsam.tensornet.spec import NetworkSpec

# The best plan changes with the batch: whether cores are merged into the weight first, or meet the data one by one.
# It is found for these sizes when a layer is built, so that a forward pass, compiled or not, only looks it up.
BATCHES = (1, 16, 64, 256, 1024, 4096, 16384)


Plan = TypeVar("Plan")


@dataclass(frozen=True)
class BatchPlans(Generic[Plan]):
    """A contraction of the cores and a batch, planned for each of BATCHES.

    Args:
        modes: those that the batch stands for; the others, in the spec's order, are the result's.
        operands: indices of what is contracted, core by core.
        output: those of the result.
        plans: one for each of BATCHES.
    """

    modes: Indices
    operands: tuple[Indices, ...]
    output: Indices
    plans: tuple[Plan, ...]

    def for_batch(self, num: int) -> Plan:
        """The plan for `num` rows: that of the smallest planned batch which is as large, or of the largest.

        While a program for any batch is traced, it is the plan for 1,024: the program must not ask for the size.
        """
        if not isinstance(num, int):
            return self.plans[BATCHES.index(1024)]
        for batch, plan in zip(BATCHES, self.plans, strict=True):
            if num <= batch:
                return plan
        return self.plans[-1]


MultiplyPlans = BatchPlans[ProductPlan]
RowsPlans = BatchPlans[EntryPlan]


def plan_multiply(spec: NetworkSpec, modes: Indices) -> MultiplyPlans:
    """For `multiply`: T contracted with vectors over `modes`."""
    plans = tuple(plan_product(spec, modes, num) for num in BATCHES)
    return BatchPlans(modes, ((BATCH, *modes), *spec.cores), _output(spec, modes), plans)


def plan_rows(spec: NetworkSpec, modes: Indices) -> RowsPlans:
    """For `rows`: T with `modes` at a position of its own for each row."""
    plans = tuple(plan_entries(spec, num, modes) for num in BATCHES)
    return BatchPlans(modes, tuple(gathered(core, modes) for core in spec.cores), _output(spec, modes), plans)


def _output(spec: NetworkSpec, modes: Indices) -> Indices:
    return (BATCH, *(mode for mode in spec.modes if mode not in modes))


def gathered(core: Indices, modes: Indices) -> Indices:
    """The indices of a core once its one mode among `modes` is replaced by the batch."""
    return tuple(BATCH if index in modes else index for index in core)


def multiply(plans: MultiplyPlans, cores: list[Tensor], vectors: Tensor) -> Tensor:
    """out[b, others] = sum over modes of T[others, modes] vectors[b, modes].

    Args:
        plans: of `plan_multiply`.
        cores: K tensors.
        vectors: (B, *sizes of the modes).

    Returns:
        (B, *sizes of the other modes).
    """
    return product_of(plans.for_batch(vectors.shape[0]), cores, vectors)


def product_of(plan: ProductPlan, cores: Sequence[Tensor], vectors: Tensor) -> Tensor:
    """`multiply` by one plan, whatever batch it was made for."""
    operands = [vectors, *(contract(table.merge, [cores[k] for k in table.cores]) for table in plan.tables)]
    # A compiler finds its own slices, and does not see into ours.
    if torch.compiler.is_compiling() or not plan.joined.slices:
        return contract(plan.joined.plan, operands).contiguous()
    return contract_sliced(plan.joined, operands, [None] * len(operands))


def rows(plans: RowsPlans, spec: NetworkSpec, cores: list[Tensor], positions: Tensor) -> Tensor:
    """out[b, others] = T[others, modes at positions[b]].

    Args:
        plans: of `plan_rows`.
        spec: of the cores.
        cores: K tensors.
        positions: (B, number of modes) int64, each column within its mode.

    Returns:
        (B, *sizes of the other modes).
    """
    at = dict(zip(plans.modes, positions.unbind(1), strict=True))
    return entries_at(plans.for_batch(positions.shape[0]), spec, cores, at).contiguous()


def slices_of(modes: Indices, spec: NetworkSpec, cores: Sequence[Tensor], positions: Tensor) -> list[Tensor]:
    """Each core at the positions of its one mode among `modes`, a batch in the place of that mode; see `gathered`."""
    column = {mode: n for n, mode in enumerate(modes)}
    taken = []
    for indices, core in zip(spec.cores, cores, strict=True):
        dim = next((d for d, index in enumerate(indices) if index in column), None)
        taken.append(core if dim is None else core.index_select(dim, positions[:, column[indices[dim]]]))
    return taken
