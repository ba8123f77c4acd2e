"""A run that its ranks have no memory for is refused before it takes any, with what would fit."""

from dataclasses import replace
from math import prod

from torch import nn

from distsam.environment import free_here, in_units
from distsam.errors import InputError
from distsam.sharding import Layout, ShardPlan
from distsam.sharding.network_cost import NetworkUse
from distsam.sharding.planner import Machine, Training, choose_plan, held_bytes
from distsam.tasks.task import Task
from distsam.train import parts
from distsam.train.config import Config
from distsam.train.planning import machine_of, training_of


def check_fits(
    config: Config, task: Task, model: nn.Module, layout: Layout, plan: ShardPlan, machine: Machine | None = None
) -> None:
    """InputError where the rank of `layout` cannot hold what `plan` gives it; activations are not counted.

    Args:
        config: of the run; sharding.fits=ignore lets everything pass.
        task: of the run.
        model: whole, before it is placed.
        layout: of the run.
        plan: by which the model is to be placed.
        machine: what the rank computes with; this process's own when None.
    """
    if config.sharding.fits == "ignore":
        return
    world = layout.world
    machine = machine or machine_of(config, world.device, model, world.world_size)
    training = training_of(config, model, 1, machine.link)
    held = held_bytes(plan, training, machine, world.rank)
    if parts.ENGINES.chosen(config.engine).plan is not None:
        held = {"weights": held["weights"]}  # what else an engine of another library keeps, it cuts itself
    needed = sum(held.values())
    if needed <= machine.memory_bytes:
        return
    num_parameters = sum(prod(shape) for shape in training.shapes.values())
    largest = max(held, key=lambda kind: held[kind])
    subject, model_kind = _words(config, task)
    raise InputError(
        f"{subject}: the {model_kind} has {num_parameters:,} parameters; plan {plan.name} needs {in_units(needed)} of "
        f"memory on {'this rank' if world.world_size > 1 else 'one rank'}, {in_units(held[largest])} of it for "
        f"{largest}, and {_given(config, layout, machine)}; {_what_would_do(training, machine, plan, model_kind)}; "
        "or set sharding.fits=ignore"
    )


def _given(config: Config, layout: Layout, machine: Machine) -> str:
    if config.sharding.memory_gib is not None:
        return f"sharding.memory_gib gives {in_units(machine.memory_bytes)}"
    if layout.world.device.type == "cpu":
        return free_here(machine.memory_bytes)
    return f"the device has {in_units(machine.memory_bytes)}"


def _what_would_do(training: Training, machine: Machine, plan: ShardPlan, model_kind: str) -> str:
    ranks = plan.num_ranks
    # Of what a pass asks of the networks nothing is known here: for what they hold anything will do.
    asked = replace(training, uses=tuple(NetworkUse(network, "entries") for network in training.networks))
    choice = choose_plan(asked, ranks, machine)
    by_auto = ", and sharding.plan=auto takes the fastest that does"
    if choice.fits and choice.chosen.placed.axes == plan.axes:
        # By equal ranges of rows it would fit, as auto sees it; divided by observations, some rank has more rows.
        choice, by_auto = choose_plan(asked, ranks, machine, without=choice.chosen.candidate.kind), ""
    placed = choice.chosen.placed
    if choice.fits:
        which = f"plan {placed.name} ({placed.mesh})" if placed.name != plan.name else f"that plan on {placed.mesh}"
        return f"{which} would fit{by_auto}"
    return f"no plan fits on {ranks} rank{'s' if ranks > 1 else ''}: start more, or take a smaller {model_kind}"


def _words(config: Config, task: Task) -> tuple[str, str]:
    """What is too large, and what it is called; of a completion the modes of its largest core."""
    spec = getattr(task, "spec", None)
    if spec is None:
        return f"sharding.plan: {config.sharding.plan}", "model"
    largest = max(range(spec.num_cores), key=lambda k: prod(spec.core_shapes[k]))
    modes = [
        f"mode {spec.place_of_mode[i]} of size {spec.size(i)}" for i in spec.cores[largest] if i in spec.place_of_mode
    ]
    what = " and ".join(modes) or f"core {spec.core_names[largest]}"
    key, given = parts.TASKS.chosen(config.task).origin(config)
    return f"{key}: {given!r}: {what}", "network"
