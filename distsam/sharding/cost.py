"""What a plan costs a rank, by formulas: bytes that it holds, messages of a step. No tensor, no process group.

A parameter is cut along the axes of a mesh as `torch.chunk` cuts it: pieces of ceil(size / ranks), the last ones
smaller or empty. Pieces along a data axis are FSDP2's, which stores, gathers and reduces them padded to equal size.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

from distsam.sharding.buckets import EXACT, SMALL_BYTES, Reduction, bucketed
from distsam.sharding.plan import ShardPlan, coordinate_of
from distsam.sharding.traffic import ALL_GATHER, ALL_REDUCE, REDUCE_SCATTER, Collective

_FLOAT64_BYTES = 8
# Gradients of these sizes of element can carry a step's numbers behind them: float32 and float64.
_EXACT_BYTES = (4, 8)


@dataclass(frozen=True)
class Weights:
    """What the formulas must know of a model's parameters, beside where a plan puts them.

    Args:
        itemsizes: parameter -> bytes of an element, of every parameter.
        cores: names of those that are cores of a network.
        trained: names of those that are not frozen.
        groups: names of those that FSDP2 gathers together, a tuple a group: each network by itself, and the rest.
    """

    itemsizes: Mapping[str, int]
    cores: frozenset[str]
    trained: frozenset[str]
    groups: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class State:
    """What an optimizer keeps of each parameter that it moves: SGD nothing, with momentum a tensor, Adam two.

    Args:
        num_tensors: of the parameter's shape.
        scalar_bytes: beside them; Adam counts its steps in a float32.
    """

    num_tensors: int = 0
    scalar_bytes: int = 0


@dataclass(frozen=True)
class StepForm:
    """What a step does, as far as its messages say.

    Args:
        vectors: for each pass over the batch, how many float64 numbers the ranks add up behind it; SAM has two passes.
        accumulate: micro-batches of a pass.
        reduction: how gradients are added up.
    """

    vectors: tuple[int, ...]
    accumulate: int = 1
    reduction: Reduction = EXACT

    @property
    def num_passes(self) -> int:
        """Of forward and backward over the batch."""
        return len(self.vectors)


@dataclass(frozen=True)
class Memory:
    """Bytes that one rank holds from step to step, and its gradients.

    Attributes:
        cores, other_parameters: the weights.
        gradients: of all passes of a step, because SAM keeps those of the first until it has measured the second.
        optimizer_state: of the base optimizer.
        sam_copy: the weights before SAM moved them.
    """

    cores: int
    other_parameters: int
    gradients: int
    optimizer_state: int
    sam_copy: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.cores + self.other_parameters + self.gradients + self.optimizer_state + self.sam_copy


def piece_shape(plan: ShardPlan, name: str, rank: int) -> tuple[int, ...]:
    """The shape of the piece of parameter `name` on `rank`; one of its sizes is 0 where the piece is empty."""
    return plan.piece_of(name, coordinate_of(rank, plan.axes))[1]


def empty_pieces(plan: ShardPlan, rank: int) -> tuple[str, ...]:
    """The parameters of which `rank` has nothing; one that is empty as a whole does not count."""
    return tuple(name for name, shape in plan.shapes if 0 not in shape and 0 in piece_shape(plan, name, rank))


def memory_of(weights: Weights, plan: ShardPlan, rank: int, state: State, num_passes: int) -> Memory:
    """What `rank` holds; `num_passes` is 2 for SAM, which alone keeps a copy."""
    held = {name: size * weights.itemsizes[name] for name, size in _stored(plan, rank).items()}
    own = {name: prod(piece_shape(plan, name, rank)) * weights.itemsizes[name] for name in held}
    trained = [name for name in held if name in weights.trained]
    return Memory(
        cores=sum(held[name] for name in held if name in weights.cores),
        other_parameters=sum(held[name] for name in held if name not in weights.cores),
        gradients=num_passes * sum(held[name] for name in trained),
        optimizer_state=sum(state.num_tensors * own[name] + state.scalar_bytes for name in trained),
        sam_copy=sum(own[name] for name in trained) if num_passes > 1 else 0,
    )


def collectives_of(weights: Weights, plan: ShardPlan, step: StepForm, rank: int = 0) -> tuple[Collective, ...]:
    """The messages of one step of the native engine that `rank` takes part in; none in a world of one.

    Those that a network's own forward sends along axes that are no data axes are not among them.
    """
    if prod(plan.mesh_shape) == 1:
        return ()
    sizes = _stored(plan, rank)
    rows = set[str]() if plan.routed is None else set(plan.parameters_cut_by(plan.routed[0]))
    gathered = {name for name in sizes if is_gathered(plan, name)}
    alike = {name: size for name, size in sizes.items() if name not in gathered | rows}
    groups = [[name for name in group if name in gathered] for group in weights.groups]
    copies = prod(dict(plan.axes)[axis] for axis in plan.gathered_axes)
    travels_along = step.reduction.dtype is None and _is_small_and_whole(weights, plan)
    # Where all ranks see the same data there is nothing to average.
    has_averages = prod(_data_sizes(plan)) > 1
    found: list[Collective] = []
    for length in step.vectors:
        for group in filter(None, groups):
            found += _of_group(plan, {name: sizes[name] for name in group}, weights, step)
        if has_averages:
            found += _averages(weights, alike, prod(_data_sizes(plan)), step.reduction, 2 if travels_along else 0)
        if rows and copies > 1:
            found += _averages(weights, {name: sizes[name] for name in rows}, copies, step.reduction)
        if not travels_along:
            found.append(Collective(ALL_REDUCE, length * _FLOAT64_BYTES, prod(plan.mesh_shape)))
    return tuple(found)


def _of_group(plan: ShardPlan, sizes: Mapping[str, int], weights: Weights, step: StepForm) -> Iterator[Collective]:
    """Each micro-batch gathers the weights for its forward and again for its backward; gradients are reduced once."""
    *others, num_shards = _data_sizes(plan)
    piece_bytes = sum(size * weights.itemsizes[name] for name, size in sizes.items())
    yield from [Collective(ALL_GATHER, num_shards * piece_bytes, num_shards)] * (2 * step.accumulate)
    sent_bytes = sum(size * step.reduction.itemsize(weights.itemsizes[name]) for name, size in sizes.items())
    yield Collective(REDUCE_SCATTER, num_shards * sent_bytes, num_shards)
    if others:
        yield Collective(ALL_REDUCE, sent_bytes, prod(others))


def _averages(
    weights: Weights, sizes: Mapping[str, int], num_ranks: int, reduction: Reduction, num_more: int = 0
) -> Iterator[Collective]:
    """Gradients of the parameters that FSDP2 leaves alone: summed in buckets, with a count each and `num_more`.

    Args:
        sizes: parameter -> elements.
        num_ranks: that average them.
        reduction: of the step.
        num_more: numbers that travel behind them.
    """
    names = list(sizes)[::-1]  # backward reaches the last ones first
    sent = {name: reduction.itemsize(weights.itemsizes[name]) for name in names}
    in_bytes = ((sizes[name] * sent[name], weights.itemsizes[name]) for name in names)
    for bucket in bucketed(in_bytes, num_ranks, reduction.link):
        active = [names[i] for i in bucket if names[i] in weights.trained]
        if active or num_more:
            num_numbers = sum(sizes[name] for name in active) + len(active) + num_more
            yield Collective(ALL_REDUCE, num_numbers * sent[names[bucket[0]]], num_ranks)


def _is_small_and_whole(weights: Weights, plan: ShardPlan) -> bool:
    """True where one message carries gradients and numbers of a pass: see `pausable`."""
    itemsizes = {weights.itemsizes[name] for name, _ in plan.shapes}
    is_whole = all(plan.is_whole(name) for name, _ in plan.shapes) and set(plan.data_axes) == set(dict(plan.axes))
    num_bytes = sum(prod(shape) * weights.itemsizes[name] for name, shape in plan.shapes)
    return is_whole and len(itemsizes) == 1 and itemsizes <= set(_EXACT_BYTES) and num_bytes <= SMALL_BYTES


def is_gathered(plan: ShardPlan, name: str) -> bool:
    """True if FSDP2 cuts and gathers the parameter: where a data axis cuts it, but for rows that have their data."""
    return any(
        d is not None and axis in plan.gathered_axes for (axis, _), d in zip(plan.axes, plan.dims_of(name), strict=True)
    )


def _stored(plan: ShardPlan, rank: int) -> dict[str, int]:
    """Parameter -> elements that `rank` stores: as many as the first rank along FSDP2's axes, which has most."""
    coordinate = coordinate_of(rank, plan.axes)
    names = [name for name, _ in plan.axes]
    padded = plan.gathered_axes
    first = [0 if name in padded else place for name, place in zip(names, coordinate, strict=True)]
    return {name: prod(plan.piece_of(name, first)[1]) for name, _ in plan.shapes}


def _data_sizes(plan: ShardPlan) -> list[int]:
    return [size for name, size in plan.axes if name in plan.data_axes]
