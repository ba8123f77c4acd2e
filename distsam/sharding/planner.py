"""Which plan is the fastest that fits: every candidate priced by formulas, from shapes alone; no process group.

The time of a step is bytes over the link's speed, a latency for each hop of a message, operations over what a rank
computes, and what the optimizer reads and writes, one after the other. Memory is what a rank keeps, and what FSDP2
gathers; activations are not counted.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import inf, prod

from distsam.environment import in_units
from distsam.errors import ArgumentError
from distsam.sharding.buckets import SMALL_BYTES
from distsam.sharding.candidates import Candidate, candidates
from distsam.sharding.cost import State, StepForm, Weights, collectives_of, is_gathered, memory_of, piece_shape
from distsam.sharding.network_cost import FLOPS_PER_MULTIPLY_ADD, NetworkUse, work_of
from distsam.sharding.plan import NetworkWeights, Plan, ShardPlan
from distsam.sharding.traffic import Link, total_time_s

# A plan must be faster by so much than a simpler one to be taken: the formulas know no better.
TIE = 0.05
# How many numbers a step reads or writes in memory for each one that it keeps beside the weights: for each weight, the
# single operations of Adam read or write 18, and three are kept (the gradient and two averages).
TOUCHES = 6
_KEPT = ("gradients", "the optimizer's state", "SAM's copy")


@dataclass(frozen=True)
class Training:
    """What is trained, as far as a plan's cost depends on it.

    Args:
        shapes: parameter -> full shape, of every parameter.
        weights: their sizes of element, which are cores, which are trained, what FSDP2 gathers together.
        networks: those that can be contracted in pieces.
        uses: how a pass contracts them; of one that is not named nothing is computed or sent.
        state: what the optimizer keeps.
        step: passes and micro-batches.
        batch: examples of a step, of all ranks together.
        is_routable: the data can go to the ranks that hold their rows of a mode.
        no_fsdp: why FSDP2 cannot serve the model; "" if it can.
    """

    shapes: Mapping[str, tuple[int, ...]]
    weights: Weights
    networks: Sequence[NetworkWeights]
    uses: Sequence[NetworkUse]
    state: State
    step: StepForm
    batch: int
    is_routable: bool = False
    no_fsdp: str = ""

    @cached_property
    def num_others(self) -> int:
        """Trained parameters that belong to no network: each is multiplied once with every example."""
        names = self.weights.trained - {name for network in self.networks for name in network.parameters}
        return sum(prod(self.shapes[name]) for name in names)

    @cached_property
    def network_bytes(self) -> int:
        """Of the networks that can be cut."""
        names = {name for network in self.networks for name in network.parameters}
        return sum(prod(self.shapes[name]) * self.weights.itemsizes[name] for name in names)


@dataclass(frozen=True)
class Machine:
    """What a rank computes with.

    Args:
        memory_bytes: that it may take.
        link: by which it reaches the others.
        flops_per_s: operations a second.
        memory_bytes_per_s: that it reads or writes; inf: that takes no time.
        copies_checkpoints: True if a checkpoint is copied in this very memory before it is written, as on CPU.
    """

    memory_bytes: int
    link: Link
    flops_per_s: float
    memory_bytes_per_s: float = inf
    copies_checkpoints: bool = False


@dataclass(frozen=True)
class Priced:
    """A candidate and its price.

    Attributes:
        candidate: the plan, and its place among the simple ones.
        placed: where it puts every parameter.
        held: what -> bytes of the rank that holds most.
        computing_s, sending_s: of a step.
    """

    candidate: Candidate
    placed: ShardPlan
    held: Mapping[str, int]
    computing_s: float
    sending_s: float

    @property
    def time_s(self) -> float:
        """Of a step."""
        return self.computing_s + self.sending_s

    @property
    def peak_bytes(self) -> int:
        """Of all that is held, as if at one time."""
        return sum(self.held.values())

    def describe(self) -> str:
        """Plan, mesh, time and bytes."""
        figures = f"{1e3 * self.time_s:.3g} ms a step, {in_units(self.peak_bytes)} a rank"
        return f"{self.placed.name} on {self.placed.mesh}: {figures}"


@dataclass(frozen=True)
class Choice:
    """The plan to take, and why no other.

    Attributes:
        chosen: the fastest that fits, ties going to the simplest; where none fits, the one with the smallest peak.
        fits: True if it fits.
        others: of each other kind of plan the best one, and why it was not taken.
        refused: kind of plan -> why it cannot serve this model on these ranks.
        machine: that was counted on.
    """

    chosen: Priced
    fits: bool
    machine: Machine
    others: tuple[tuple[Priced, str], ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)

    @property
    def plan(self) -> Plan:
        """To be taken."""
        return self.chosen.candidate.plan

    def describe(self) -> str:
        """The plan taken, then a line for each other kind; for people."""
        given = f"{in_units(self.machine.memory_bytes)} a rank, {self.machine.link.name}"
        why = "" if self.fits else "; it does not fit either, but has the smallest peak"
        lines = [f"auto takes {self.chosen.describe()} (of {given}){why}"]
        lines += [f"  not {priced.describe()}: {reason}" for priced, reason in self.others]
        lines += [f"  not {kind}: {reason}" for kind, reason in self.refused.items()]
        return "\n".join(lines)


def choose_plan(training: Training, world_size: int, machine: Machine, without: str = "") -> Choice:
    """The plan for `world_size` ranks, of any kind but `without`; the same for the same arguments on every process."""
    found, refused = list[Priced](), dict[str, str]()
    for candidate in candidates(training.shapes, training.networks, training.is_routable, world_size):
        if candidate.kind == without:
            continue
        why_not = _why_not(candidate, training)
        try:
            if not why_not:
                found.append(price(candidate, training, world_size, machine))
        except ArgumentError as error:
            why_not = error.problem
        if why_not:
            refused.setdefault(candidate.kind, why_not)
    best = _best_of_each_kind(found, machine)
    chosen, fits = _chosen(best, machine)
    simpler = best[: best.index(chosen)]
    others = tuple(
        (priced, _reason(priced, chosen, machine, is_simpler=priced in simpler))
        for priced in best
        if priced is not chosen
    )
    kinds = {priced.candidate.kind for priced in best}
    return Choice(chosen, fits, machine, others, {kind: why for kind, why in refused.items() if kind not in kinds})


def price(candidate: Candidate, training: Training, world_size: int, machine: Machine) -> Priced:
    """What the plan of `candidate` costs.

    Raises:
        ArgumentError: it cannot serve the model on these ranks.
    """
    axes = candidate.plan.axes(world_size)
    trained = {name: shape for name, shape in training.shapes.items() if name in training.weights.trained}
    placed = _with_frozen(candidate.plan.place(trained, axes, training.networks), training.shapes)
    computing, sending = _time_s(candidate, placed, training, machine)
    held = held_bytes(placed, training, machine)
    computing += TOUCHES * sum(held[kind] for kind in _KEPT) / machine.memory_bytes_per_s
    return Priced(candidate, placed, held, computing, sending)


def held_bytes(plan: ShardPlan, training: Training, machine: Machine, rank: int = 0) -> dict[str, int]:
    """What a rank holds of each kind, in bytes, most of it for all of a run; activations are not counted."""
    weights = training.weights
    memory = memory_of(weights, plan, rank, training.state, training.step.num_passes)
    own = sum(prod(piece_shape(plan, name, rank)) * weights.itemsizes[name] for name in weights.trained)
    in_groups = [
        sum(prod(training.shapes[name]) * weights.itemsizes[name] for name in group if is_gathered(plan, name))
        for group in weights.groups
    ]
    # Cut by an axis that is no data axis too, only a part of it is gathered.
    share = prod(size for name, size in plan.axes if name in plan.contracted_axes)
    averaged = [name for name in weights.trained if not is_gathered(plan, name)]
    sent = training.step.reduction.itemsize
    buffer = sum(prod(piece_shape(plan, name, rank)) * sent(weights.itemsizes[name]) for name in averaged)
    # FSDP2 keeps gradients as large as whole weights until the last micro-batch has been added to them.
    between = sum(in_groups) // share if training.step.accumulate > 1 else 0
    return {
        "weights": memory.cores + memory.other_parameters,
        "gradients": memory.gradients,
        "the optimizer's state": memory.optimizer_state,
        "SAM's copy": memory.sam_copy,
        "the copy of the best weights": own,
        # Weights that are gathered, and their gradients before they are scattered.
        "gathered weights": 2 * max(in_groups, default=0) // share,
        "gradients between micro-batches": between,
        "messages": buffer if plan.num_ranks > 1 else 0,
        "a checkpoint's copy": own + memory.optimizer_state if machine.copies_checkpoints else 0,
    }


def is_worth_cutting(training: Training, world_size: int, machine: Machine) -> bool:
    """False where no plan of bonds can be better than copies: their gradients are sent in one message as it is."""
    if world_size == 1 or not training.networks:
        return False
    [simplest, *_] = candidates(training.shapes, (), False, world_size)
    copies = price(simplest, training, world_size, machine)
    return training.network_bytes > SMALL_BYTES or copies.peak_bytes > machine.memory_bytes


def _why_not(candidate: Candidate, training: Training) -> str:
    kind = candidate.kind
    if "fsdp" in kind and training.no_fsdp:
        return training.no_fsdp
    if "bond" in kind and not training.uses:
        return "too small to be cut, or its shapes say not how it is contracted"
    return ""


def _with_frozen(placed: ShardPlan, shapes: Mapping[str, tuple[int, ...]]) -> ShardPlan:
    whole = (None,) * len(placed.axes)
    dims = dict(placed.placements)
    placements = tuple((name, dims.get(name, whole)) for name in shapes)
    return ShardPlan(placed.name, placed.axes, placed.data_axes, tuple(shapes.items()), placements, placed.routed)


def _time_s(candidate: Candidate, plan: ShardPlan, training: Training, machine: Machine) -> tuple[float, float]:
    sizes = dict(plan.axes)
    num_data = prod(size for name, size in plan.axes if name in plan.data_axes)
    num_bond = prod(sizes[name] for name in plan.contracted_axes)
    rows = None if candidate.mode is None or plan.routed is None else (candidate.mode, sizes[plan.routed[0]])
    itemsize = max(training.weights.itemsizes.values(), default=4)
    sending = total_time_s(collectives_of(training.weights, plan, training.step), machine.link)
    computing = (
        FLOPS_PER_MULTIPLY_ADD * training.num_others * max(1, training.batch / num_data) / machine.flops_per_s
    ) * training.step.num_passes
    for use in training.uses:
        # Micro-batches: as many rows, in several calls.
        parts = num_data * training.step.accumulate
        once = work_of(use, num_bond, parts, rows).time_s(itemsize, num_bond, machine.link, machine.flops_per_s)
        times = training.step.num_passes * training.step.accumulate
        computing, sending = computing + times * once[0], sending + times * once[1]
    return computing, sending


def _best_of_each_kind(found: Sequence[Priced], machine: Machine) -> list[Priced]:
    """Of every kind the fastest that fits, the simplest kind first; where none of it fits, the smallest peak."""
    kinds: dict[str, list[Priced]] = {}
    for priced in found:
        kinds.setdefault(priced.candidate.kind, []).append(priced)
    return [_fastest(kind, machine) for kind in kinds.values()]


def _fastest(found: Sequence[Priced], machine: Machine) -> Priced:
    fitting = list(_fitting(found, machine))
    if fitting:
        return min(fitting, key=lambda priced: priced.time_s)
    return min(found, key=lambda priced: priced.peak_bytes)


def _fitting(found: Sequence[Priced], machine: Machine) -> Iterator[Priced]:
    return (priced for priced in found if priced.peak_bytes <= machine.memory_bytes)


def _chosen(best: Sequence[Priced], machine: Machine) -> tuple[Priced, bool]:
    """The simplest of those that are hardly slower than the fastest; and whether it fits."""
    fitting = list(_fitting(best, machine))
    if not fitting:
        return min(best, key=lambda priced: priced.peak_bytes), False
    least = min(priced.time_s for priced in fitting)
    return next(priced for priced in fitting if priced.time_s <= (1 + TIE) * least), True


def _reason(priced: Priced, chosen: Priced, machine: Machine, *, is_simpler: bool) -> str:
    if priced.peak_bytes > machine.memory_bytes:
        return f"more than the {in_units(machine.memory_bytes)} there are"
    ratio = priced.time_s / chosen.time_s if chosen.time_s else 1.0
    # One that is simpler was too slow beside the fastest, though it may not be beside the chosen one.
    if is_simpler or ratio > 1 + TIE:
        return f"{ratio:.3g} times as long"
    return f"no faster by more than {TIE:.0%}, and less simple"
