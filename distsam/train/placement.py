"""The plan of a config, its ranks on their axes, and where it puts the weights of a model."""

import torch
from torch import nn

from distsam.environment import processes_here
from distsam.sharding import Layout, Plan, ShardPlan, World, make_layout, place_model, shard
from distsam.sharding.buckets import Reduction
from distsam.sharding.traffic import LINKS, Link
from distsam.tasks.task import Task
from distsam.train import parts
from distsam.train.config import Config
from distsam.train.keys_of_arguments import arguments_as_keys
from distsam.train.seams import AUTO


def build_plan(config: Config, bounds: tuple[int, ...] | None = None) -> Plan:
    """The plan that sharding.plan names, or that of an engine which places weights itself.

    For auto copies: what one process has. Of several, `place_run` chooses before.

    Args:
        config: of the run.
        bounds: how the task divides the rows of a routed mode; equal ranges where that is not known yet.
    """
    own = parts.ENGINES.chosen(config.engine).plan
    if own is not None:
        chosen: Plan = own(config)
        return chosen
    chosen_parts = parts.PLACEMENTS.split(config.sharding.plan)
    if chosen_parts == (parts.PINNED,):
        pinned: Plan = parts.PINNED.build(config.sharding, bounds)
        return pinned
    words = [part.word for part in chosen_parts] or ["replicate"]
    plan: Plan = parts.PLANS.parts[words[0] if words[0] in parts.PLANS.parts else "replicate"].build(config.sharding)
    for word in words:
        if word in parts.ROUTES.parts:
            plan = parts.ROUTES.parts[word].build(config.sharding, plan, bounds)
        elif word in parts.SPLITS.parts:
            plan = parts.SPLITS.parts[word].build(config.sharding, plan)
    return plan


def build_layout(config: Config, world: World) -> Layout:
    """The ranks on the axes of the plan.

    Collectives: those of starting the groups of the mesh; every rank calls it.

    Raises:
        InputError: a plan that cannot serve this number of ranks; on every rank alike.
    """
    with arguments_as_keys("sharding"):
        return make_layout(world, build_plan(config))


def place_weights(
    config: Config, task: Task, model: nn.Module, layout: Layout, *, draws: bool, link: Link | None = None
) -> ShardPlan:
    """Where the weights live; they are there now, unless the engine puts them there.

    Args:
        draws: deferred networks get their numbers, else zeros.
        link: between the ranks; that of this run when None.

    Collectives: those of `shard`; every rank calls it.

    Raises:
        InputError: a plan that cannot serve the model.
    """
    plan = placement_of(config, model, layout, row_bounds(task))
    if parts.ENGINES.chosen(config.engine).plan is None:
        with arguments_as_keys("sharding"):
            reduction = reduction_of(config, link or link_of(config, layout.world.device, layout.world.world_size))
            shard(model, layout.mesh, plan, draws=draws, reduction=reduction)
    return plan


def placement_of(config: Config, model: nn.Module, layout: Layout, bounds: tuple[int, ...] | None = None) -> ShardPlan:
    """Where the plan puts the weights of `model`, which is whole yet; no collective.

    Args:
        config: of the run.
        model: of its task.
        layout: the ranks on the axes of the plan.
        bounds: of the rows of a routed mode; equal ranges when None.

    Raises:
        InputError: a plan that cannot serve the model.
    """
    with arguments_as_keys("sharding"):
        if parts.ENGINES.chosen(config.engine).plan is not None:
            shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
            return build_plan(config).place(shapes, layout.axes)
        return place_model(build_plan(config, bounds), model, layout.axes)


def reduction_of(config: Config, link: Link) -> Reduction:
    """How gradients are added up over the ranks."""
    return Reduction(None if config.sharding.reduce_dtype is None else torch.bfloat16, link)


def link_of(config: Config, device: torch.device, world_size: int) -> Link:
    """What joins the ranks: sharding.link, else by their device and whether they are on one machine.

    Args:
        config: of the run.
        device: of this rank.
        world_size: number of ranks.
    """
    if config.sharding.link != AUTO:
        return LINKS[config.sharding.link]
    words = {
        ("cuda", False): "nvlink",
        ("cuda", True): "infiniband",
        ("cpu", False): "loopback",
        ("cpu", True): "ethernet",
    }
    return LINKS[words[device.type, processes_here() < world_size]]


def row_bounds(task: Task) -> tuple[int, ...] | None:
    """How the task divides the rows of a routed mode; None where there is none."""
    bounds: tuple[int, ...] | None = getattr(task, "row_bounds", None)
    return bounds
