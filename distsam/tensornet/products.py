"""A network as a linear map: contracted with a batch of vectors, or with some modes fixed for each of a batch."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from distsam.tensornet.contraction import ContractionPlan, Indices, contract, plan_contraction
from distsam.tensornet.planner import BATCH
from distsam.tensornet.spec import NetworkSpec

# The cheapest order changes with the batch: whether cores are merged into the weight first, or meet the data one by
# one. It is found for these sizes when a layer is built, so that a forward pass, compiled or not, only looks it up.
BATCHES = (1, 16, 128, 1024, 8192)


@dataclass(frozen=True)
class BatchPlans:
    """A contraction of the cores and a batch, planned for each of BATCHES.

    Args:
        modes: those that the batch stands for; the others, in the spec's order, are the result's.
        plans: one for each of BATCHES.
    """

    modes: Indices
    plans: tuple[ContractionPlan, ...]

    def for_batch(self, num: int) -> ContractionPlan:
        """The plan for `num` rows: that of the smallest planned batch which is as large, or of the largest.

        While a program for any batch is traced, it is the plan for 1,024: the program must not ask for the size.
        """
        if not isinstance(num, int):
            return self.plans[BATCHES.index(1024)]
        for batch, plan in zip(BATCHES, self.plans, strict=True):
            if num <= batch:
                return plan
        return self.plans[-1]


def plan_multiply(spec: NetworkSpec, modes: Indices) -> BatchPlans:
    """For `multiply`: T contracted with vectors over `modes`."""
    return _planned(spec, modes, ((BATCH, *modes), *spec.cores))


def plan_rows(spec: NetworkSpec, modes: Indices) -> BatchPlans:
    """For `rows`: T with `modes` at a position of its own for each row."""
    return _planned(spec, modes, tuple(gathered(core, modes) for core in spec.cores))


def gathered(core: Indices, modes: Indices) -> Indices:
    """The indices of a core once its one mode among `modes` is replaced by the batch."""
    return tuple(BATCH if index in modes else index for index in core)


def _planned(spec: NetworkSpec, modes: Indices, operands: tuple[Indices, ...]) -> BatchPlans:
    output = (BATCH, *(mode for mode in spec.modes if mode not in modes))
    return BatchPlans(modes, tuple(plan_contraction(operands, output, (*spec.sizes, (BATCH, n))) for n in BATCHES))


def multiply(plans: BatchPlans, cores: list[Tensor], vectors: Tensor) -> Tensor:
    """out[b, others] = sum over modes of T[others, modes] vectors[b, modes].

    Args:
        plans: of `plan_multiply`.
        cores: K tensors.
        vectors: (B, *sizes of the modes).

    Returns:
        (B, *sizes of the other modes).
    """
    return contract(plans.for_batch(vectors.shape[0]), [vectors, *cores]).contiguous()


def rows(plans: BatchPlans, spec: NetworkSpec, cores: list[Tensor], positions: Tensor) -> Tensor:
    """out[b, others] = T[others, modes at positions[b]].

    Args:
        plans: of `plan_rows`.
        spec: of the cores.
        cores: K tensors.
        positions: (B, number of modes) int64, each column within its mode.

    Returns:
        (B, *sizes of the other modes).
    """
    taken = slices_of(plans.modes, spec, cores, positions)
    return contract(plans.for_batch(positions.shape[0]), taken).contiguous()


def slices_of(modes: Indices, spec: NetworkSpec, cores: Sequence[Tensor], positions: Tensor) -> list[Tensor]:
    """Each core at the positions of its one mode among `modes`, a batch in the place of that mode; see `gathered`."""
    column = {mode: n for n, mode in enumerate(modes)}
    taken = []
    for indices, core in zip(spec.cores, cores, strict=True):
        dim = next((d for d, index in enumerate(indices) if index in column), None)
        taken.append(core if dim is None else core.index_select(dim, positions[:, column[indices[dim]]]))
    return taken
