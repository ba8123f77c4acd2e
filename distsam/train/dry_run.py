"""What a step of a run would cost one rank of a world, without that world: shapes run through it, not numbers."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.utils._pytree import tree_leaves, tree_map_only

from distsam.engine import NativeEngine
from distsam.errors import InputError
from distsam.runs.folder import RunFolder
from distsam.sharding import Layout, ShardPlan, World
from distsam.sharding.buckets import Reduction
from distsam.sharding.cost import Memory, State, StepForm, Weights, is_gathered
from distsam.sharding.fake_world import fake_world
from distsam.sharding.groups import shard_groups
from distsam.sharding.planner import Machine
from distsam.sharding.traffic import Link
from distsam.tasks.task import Task
from distsam.tensornet import core_networks
from distsam.train import parts
from distsam.train.auto_values import auto_rules
from distsam.train.build import (
    RunParts,
    assemble_parts,
    build_model,
    build_task,
)
from distsam.train.config import Config
from distsam.train.fits import check_fits
from distsam.train.forecast import Forecast, extrapolate, link_for
from distsam.train.keys_of_arguments import arguments_as_keys
from distsam.train.ledger import Ledger, Use
from distsam.train.placement import build_layout, build_plan, place_weights, placement_of, reduction_of, row_bounds
from distsam.train.placing import as_copies, wants_plan
from distsam.train.planning import FLOPS_PER_S, choose, chosen_keys, planned_machine
from distsam.train.settled import recalled, settled, with_values

# Up to so many ranks a step is run; of more, formulas say what depends on their number.
MOST_SIMULATED = 1024

_NEEDS_VALUES = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException)


def dry_run(config: Config, world_size: int, rank: int = 0, machine: Machine | None = None) -> Forecast:
    """What a step of `config` costs rank `rank` of `world_size`, by the functions that a run is built by.

    Where the plan is auto, it is the one that a run on such machines would choose.

    Needs the run's data and no accelerator; writes nothing, starts no process. Everything is computed as on CPU.

    Args:
        config: of the run.
        world_size, rank: of how many, and which.
        machine: what each rank would compute with; when None the config's link, or InfiniBand, 10^13 operations a
            second and the memory that the config gives, or this machine has.

    Raises:
        InputError: something in the config cannot be used, the plan cannot serve so many ranks, there is no such rank,
            the rank has not the memory, or the engine is not the native one.
    """
    _check(config, world_size, rank)
    config = recalled(config, RunFolder(Path(config.run.dir)))
    strengths = {f"optim.{key}": 1.0 for key in auto_rules(config)}  # any above 0: they change no shape
    config = with_values(config, {**parts.TASKS.chosen(config.task).planned(config), **strengths})
    machine = machine or planned_machine(config, link_for(config), FLOPS_PER_S["cuda"])
    reasons = ""
    if wants_plan(config, world_size):
        config, reasons = _planned(config, world_size, machine)
    seen = _layout_without_ranks(config, world_size, rank)
    task = build_task(config, seen, is_planned=True)
    config = settled(config, task)
    placed = _placed_without_ranks(config, task, seen, machine)
    if world_size <= MOST_SIMULATED:
        found = simulate(config, task, world_size, rank, machine.link)
    else:
        found = extrapolate(_largest_simulation(config, task, rank, machine.link), placed, rank)
    return replace(found, reasons=tuple(reasons.splitlines()))


def _layout_without_ranks(config: Config, world_size: int, rank: int) -> Layout:
    with arguments_as_keys("sharding"):
        plan = build_plan(config)
        axes = plan.axes(world_size)
    return Layout(World(rank, world_size, 0, torch.device("cpu")), None, axes, plan.data_axes)


def _planned(config: Config, world_size: int, machine: Machine) -> tuple[Config, str]:
    """The config with the plan that rank 0 of a run would choose, and why."""
    device = torch.device("cpu")
    task = build_task(config, as_copies(World(0, world_size, 0, device)), is_planned=True)
    config = settled(config, task)
    pieces = task.microbatches(0, config.train.accumulate)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with fake_world(0, 1), _spoken_for(config), mode, Ledger().watching():
        model = build_model(config, task, defers=True)
        choice = choose(config, task, model, pieces, world_size, machine, device, mode)
    return with_values(config, chosen_keys(choice)), choice.describe()


def simulate(config: Config, task: Task, world_size: int, rank: int, link: Link) -> Forecast:
    """Run a step on fake tensors in a fake world; the batch is that of `task`."""
    count = config.train.accumulate
    # Before tensors are fake: data are read as they are.
    batches = [task.microbatches(step, count) for step in range(2)]
    ledger = Ledger()
    with fake_world(rank, world_size) as world:
        layout = build_layout(config, world)
        with _spoken_for(config), FakeTensorMode(allow_non_fake_inputs=True) as mode, ledger.watching():
            model = build_model(config, task, defers=True)
            weights = weights_of(config, model, layout)
            plan = place_weights(config, task, model, layout, draws=False, link=link)
            run = assemble_parts(config, task, layout, model, plan, {}, {})
            fake = (tree_map_only(Tensor, mode.from_tensor, batch) for batch in batches)
            return measure_step(run, weights, fake, ledger, reduction_of(config, link))


def _check(config: Config, world_size: int, rank: int) -> None:
    if world_size < 1:
        raise InputError(f"--world-size: {world_size}; a world has at least 1 rank")
    if not 0 <= rank < world_size:
        raise InputError(f"--rank: {rank}; the ranks of a world of {world_size} are 0 to {world_size - 1}")
    if parts.BASES.chosen(config.optim).solves:
        word = config.optim.base
        raise InputError(
            f"optim.base: {word}: the dry run knows no values, and how the entries lie is what a step of {word} costs; "
            "start the run with few train.steps"
        )
    if parts.ENGINES.chosen(config.engine).plan is not None:
        word = config.engine.kind
        raise InputError(f"engine.kind: {word}: the dry run knows the native engine, whose step is torch's own")


def _placed_without_ranks(config: Config, task: Task, layout: Layout, machine: Machine) -> ShardPlan:
    """The plan, which must fit."""
    with fake_world(0, 1), _spoken_for(config), FakeTensorMode(allow_non_fake_inputs=True), Ledger().watching():
        model = build_model(config, task, defers=True)
        placed = placement_of(config, model, layout, row_bounds(task))
        check_fits(config, task, model, layout, placed, machine)
        return placed


def _largest_simulation(config: Config, task: Task, rank: int, link: Link) -> Forecast:
    """A step in the largest world that the plan can serve of 1,024, 512, ... ranks."""
    num_ranks = MOST_SIMULATED
    while True:
        try:
            return simulate(config, task, num_ranks, rank % num_ranks, link)
        except InputError:
            if num_ranks == 1:
                raise
            num_ranks //= 2


def weights_of(config: Config, model: nn.Module, layout: Layout) -> Weights:
    """What the formulas must know of `model`, which is whole yet."""
    plan, named = placement_of(config, model, layout), dict(model.named_parameters())
    cores = {id(core) for network in core_networks(model) for core in network.cores}
    with arguments_as_keys("sharding"):
        groups = shard_groups(model, {param for name, param in named.items() if not is_gathered(plan, name)})
    return Weights(
        itemsizes={name: param.element_size() for name, param in named.items()},
        cores=frozenset(name for name, param in named.items() if id(param) in cores),
        trained=frozenset(name for name, param in named.items() if param.requires_grad),
        groups=tuple(tuple(group.params) for group in groups),
    )


def measure_step(
    run: RunParts, weights: Weights, batches: Iterator[Sequence[Any]], ledger: Ledger, reduction: Reduction
) -> Forecast:
    """What the second step of `run` takes; the first one makes the optimizer's state.

    Args:
        weights: of the model.
        batches: the micro-batches of each of the two steps.
        ledger: watching since before the model was built.
        reduction: how gradients are added up.
    """
    engine = run.engine
    assert isinstance(engine, NativeEngine)
    starts: list[tuple[int, int]] = []

    def loss_of(batch: Any) -> Tensor:
        starts.append((len(ledger.collectives), ledger.flops))
        return run.task.loss(run.model, batch)

    engine.step([partial(loss_of, batch) for batch in next(batches)])  # makes the optimizer's state
    _label(run, engine, weights, ledger)
    starts.clear()
    batch = next(batches)
    ledger.label(Use.WORKING, [tensor for tensor in tree_leaves(batch) if isinstance(tensor, Tensor)])
    ledger.begin()
    engine.step([partial(loss_of, piece) for piece in batch])
    count, num_passes = len(batch), len(starts) // len(batch)
    # What comes before the second pass begins is what the second pass adds: the same once more.
    calls, flops = starts[count] if num_passes > 1 else (0, 0)
    most, peak = ledger.most()
    return Forecast(
        rank=run.rank,
        plan=run.plan,
        weights=weights,
        step=StepForm(_vectors(run, engine, num_passes), count, reduction),
        state=_state_of(engine, weights),
        num_trained=run.num_trained,
        memory=Memory(
            most[Use.CORES], most[Use.OTHER_PARAMETERS], most[Use.GRADIENTS], most[Use.STATE], most[Use.COPY]
        ),
        activations=most[Use.WORKING],
        communication=most[Use.COMMUNICATION],
        peak=peak,
        collectives=tuple(ledger.collectives),
        sam_collectives=tuple(ledger.collectives[:calls]),
        flops=ledger.flops,
        sam_flops=flops,
        num_simulated=run.layout.world.world_size,
    )


def _label(run: RunParts, engine: NativeEngine, weights: Weights, ledger: Ledger) -> None:
    """Say what lives from step to step, and have gradients said as each pass leaves them."""
    named = dict(run.model.named_parameters())
    ledger.label(Use.CORES, [param for name, param in named.items() if name in weights.cores])
    ledger.label(Use.OTHER_PARAMETERS, [param for name, param in named.items() if name not in weights.cores])
    ledger.label(Use.OTHER_PARAMETERS, run.model.buffers())
    ledger.label(Use.STATE, engine.state_tensors().values())
    ledger.label(Use.GRADIENTS, [param.grad for param in named.values()])
    for wrapper in engine.optimizer.chain():
        ledger.label(Use.COPY, wrapper.copies)
    pieces = engine.optimizer.guard.meter.pieces
    separate, with_sums = pieces.gradients, pieces.gradients_and_sums

    def gradients() -> list[Tensor | None]:
        found = separate()
        ledger.label(Use.GRADIENTS, found)
        return found

    def gradients_and_sums(loss: Tensor, wants_stop: bool) -> tuple[list[Tensor | None], Tensor] | None:
        found = with_sums(loss, wants_stop)
        ledger.label(Use.GRADIENTS, () if found is None else found[0])
        return found

    # Of this one object, which lives as long as the run.
    vars(pieces).update(gradients=gradients, gradients_and_sums=gradients_and_sums)


def _vectors(run: RunParts, engine: NativeEngine, num_passes: int) -> tuple[int, ...]:
    """How many numbers the meter adds up after each pass of step 2: see `Meter`."""
    meter, chain = engine.optimizer.guard.meter, engine.optimizer.chain()
    has_norms = run.coordinator.wants_norms(2) or any(wrapper.networks for wrapper in chain)
    first = len(meter.params) + 2 + (meter.num_cores if has_norms else 0)
    second = len(meter.params) + 2 + (meter.num_cores if run.coordinator.is_due(2) else 0)
    return (first, second)[:num_passes]


def _state_of(engine: NativeEngine, weights: Weights) -> State:
    """What the optimizers keep of a trained parameter, as the first one shows."""
    named = dict(engine.model.named_parameters())
    name = next(name for name in named if name in weights.trained)
    tensors = [t for key, t in engine.state_tensors().items() if key.partition(".")[2].rpartition(".")[0] == name]
    alike = [tensor for tensor in tensors if tensor.shape == named[name].shape]
    others = [tensor for tensor in tensors if tensor.shape != named[name].shape]
    return State(len(alike), sum(tensor.numel() * tensor.element_size() for tensor in others))


@contextmanager
def _spoken_for(config: Config) -> Iterator[None]:
    """What a model or task does with values, and cannot be done without, as a mistake that names it; no warnings, which
    are for those who train."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except RuntimeError as error:
        if not isinstance(error, _NEEDS_VALUES) and "numpy() is not supported" not in str(error):
            raise
        key, given = parts.TASKS.chosen(config.task).origin(config)
        problem = "its model or loss looks at values, which a dry run does not have"
        raise InputError(f"{key}: {given}: {problem} ({type(error).__name__}: {error})") from None
