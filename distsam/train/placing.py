"""From a config to the ranks on their axes and each one's task: where sharding.plan says auto, the plan comes first."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from distsam.sharding import Layout, Replicate, World
from distsam.tasks.task import Task
from distsam.train import parts
from distsam.train.agreement import agreed, from_first_rank
from distsam.train.build import build_model
from distsam.train.config import Config
from distsam.train.placement import build_layout
from distsam.train.planning import choose, chosen_keys, machine_of
from distsam.train.seams import AUTO
from distsam.train.settled import settled, with_values


@dataclass(frozen=True, eq=False)
class Placing:
    """A run before its weights are placed.

    Attributes:
        config: with a number for each key that was left to the data; the plan as it was given.
        planned: the same with the plan that auto chose.
        layout, task: of this rank.
        model: of the task, whole, where it had to be built to choose a plan; else None.
    """

    config: Config
    planned: Config
    layout: Layout
    task: Task
    model: nn.Module | None = None


def wants_plan(config: Config, world_size: int) -> bool:
    """True where a plan is to be chosen: of one process there is nothing to choose, an engine may have its own, and a
    base that solves needs copies."""
    has_own = parts.ENGINES.chosen(config.engine).plan is not None or parts.BASES.chosen(config.optim).solves
    return config.sharding.plan == AUTO and world_size > 1 and not has_own


def as_copies(world: World) -> Layout:
    """The ranks as they are under every plan of which each rank has its own part of the data; no collective."""
    return Layout(world, None, Replicate().axes(world.world_size), Replicate().data_axes)


def place_run(config: Config, world: World, find_task: Callable[[Config, Layout], Task]) -> Placing:
    """The layout and the task of this rank.

    With auto the task is built once, as copies and FSDP2's pieces need it. Only where bonds or rows are cut, so that
    several ranks see the same data or each sees that of its rows, is it built again for them.

    Args:
        config: of the run.
        world: of this process.
        find_task: builds the task for a config and a layout.

    Collectives: those of the layout and of `settled`, and of choosing an object broadcast; every rank calls it.

    Raises:
        InputError: the plan cannot serve so many ranks, or the task cannot be built; on every rank.
    """
    if not wants_plan(config, world.world_size):
        layout = agreed(lambda: build_layout(config, world))
        task = agreed(lambda: find_task(config, layout))
        config = settled(config, task)
        return Placing(config, config, layout, task)
    found = _with_plan(config, world, find_task)
    if found.layout.data_size == world.world_size and "mode" not in found.layout.data_axes:
        return found
    task = agreed(lambda: find_task(found.planned, found.layout))
    return Placing(found.config, found.planned, found.layout, task)


def _with_plan(config: Config, world: World, find_task: Callable[[Config, Layout], Task]) -> Placing:
    """The plan that auto chose, with the task and the model of which it was chosen."""
    seen = as_copies(world)
    task = agreed(lambda: find_task(config, seen))
    config = settled(config, task)
    model = agreed(lambda: build_model(config, task, defers=True))
    planned = with_values(config, _chosen_by_first(config, task, model, world))
    return Placing(config, planned, agreed(lambda: build_layout(planned, world)), task, model)


def _chosen_by_first(config: Config, task: Task, model: nn.Module, world: World) -> dict[str, Any]:
    """The keys of the plan, as rank 0 finds them: what is free on the machines may differ."""

    def on_first() -> dict[str, Any]:
        if world.rank != 0:
            return {}
        machine = machine_of(config, world.device, model, world.world_size)
        pieces = task.microbatches(0, config.train.accumulate)
        return chosen_keys(choose(config, task, model, pieces, world.world_size, machine, world.device))

    found = agreed(on_first)
    return from_first_rank(lambda: found)
