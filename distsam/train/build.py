"""From a config to everything that a run needs."""

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.optim import Optimizer

from distsam.balance import BalanceCoordinator
from distsam.engine import Engine, Schedule
from distsam.errors import InputError
from distsam.optim import Plain, Wrapper
from distsam.runs.folder import RunFolder
from distsam.sharding import Layout, ShardPlan
from distsam.sharding.collectives import all_reduce_sum_, average_
from distsam.tasks.task import Task, TaskContext
from distsam.tensornet import core_networks, deferred_draws
from distsam.train import parts
from distsam.train.agreement import agreed, from_first_rank
from distsam.train.auto_values import auto_values, loads_all
from distsam.train.config import Config
from distsam.train.fits import check_fits
from distsam.train.frozen import frozen_identity
from distsam.train.keys_of_arguments import arguments_as_keys
from distsam.train.placement import place_weights, placement_of, row_bounds
from distsam.train.settled import with_values


@dataclass(frozen=True, eq=False)
class RunParts:
    """What a run consists of, ready for its first step.

    Args:
        auto: the numbers that stand in place of auto, by key of the optim section.
        num_trained: parameters that are not frozen.
        frozen: what `frozen_identity` gave.
    """

    layout: Layout
    task: Task
    model: nn.Module
    plan: ShardPlan
    coordinator: BalanceCoordinator
    engine: Engine
    auto: Mapping[str, float] = field(default_factory=dict)
    num_trained: int = 0
    frozen: Mapping[str, str] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        """Of this process among all."""
        return self.layout.world.rank

    @property
    def num_parameters(self) -> int:
        """Of the whole model; an engine may keep a part of it only on each rank."""
        return sum(math.prod(shape) for _, shape in self.plan.shapes)

    def average_buffers(self) -> None:
        """Give every rank the mean of the running statistics, which batch normalization takes of a rank's own examples.

        Collectives: one all_reduce over the data ranks where the model has such buffers; every rank calls it.
        """
        floating = [buffer for buffer in self.model.buffers() if buffer.is_floating_point()]
        average_(floating, self.layout.data_group)

    def counts(self) -> dict[str, float | int | None]:
        """What is published of the engine's counters: those of wrappers, such as das/clipped."""
        return {name: count for name, count in self.engine.counters().items() if "/" in name}

    def settled(self) -> dict[str, float | int | None]:
        """What is published of the numbers in place of auto: auto/rho and auto/alpha, which are the same in each row.

        Where a schedule changes them, they are its start.
        """
        return {f"auto/{key}": value for key, value in self.auto.items()}


def build_task(config: Config, layout: Layout, is_planned: bool = False) -> Task:
    """The task of this rank; needs no other process.

    Args:
        is_planned: nothing is to be trained: see `TaskContext`.

    Raises:
        InputError: its data cannot be used, or do not fit the rest of the config.
    """
    part = parts.TASKS.chosen(config.task)
    # None also where a run that had such an axis is opened again in one process.
    num_ranges = dict(layout.axes).get("mode")
    context = TaskContext(
        seed=config.run.seed,
        data_rank=layout.data_rank,
        data_size=layout.data_size,
        device=layout.world.device,
        dtype=torch.float64 if config.train.precision == "float64" else torch.float32,
        sum_over_ranks=lambda tensor: all_reduce_sum_(tensor, layout.data_group),
        is_planned=is_planned,
        routed_mode=getattr(config.sharding, "mode", None) if num_ranges else None,
        num_ranges=num_ranges,
    )
    with part.naming():
        task: Task = part.build(config, context)
        if num_ranges and row_bounds(task) is None:
            problem = f"{config.sharding.plan} divides the rows of a tensor, which task.kind={config.task.kind} has not"
            raise InputError(f"sharding.plan: {problem}; use another plan")
        # Asked for once, so that a batch that cannot be cut is refused before the first step.
        task.microbatches(0, config.train.accumulate)
    return task


def build_model(config: Config, task: Task, *, defers: bool = False) -> nn.Module:
    """The task's model at its start, whole.

    Args:
        config: of the run.
        task: of the run.
        defers: networks may have no numbers yet, if the task does without them; whoever places them draws them.

    Raises:
        InputError: there is no such start.
    """
    # A task of the user's own may look at the numbers, or change them.
    later = deferred_draws() if defers and getattr(task, "starts_deferred", False) else nullcontext()
    with parts.TASKS.chosen(config.task).naming(), later:
        model = task.build_model()
    if config.train.precision is not None:
        model.to(dtype=torch.float64 if config.train.precision == "float64" else torch.float32)
    for name, param in model.named_parameters():
        if not param.is_meta and not torch.isfinite(param).all():
            key, given = parts.TASKS.chosen(config.task).origin(config)
            raise InputError(f"{key}: {given}: the model starts with values in {name} that are not finite")
    return model


def build_parts(
    config: Config, task: Task, layout: Layout, folder: RunFolder | None = None, model: nn.Module | None = None
) -> RunParts:
    """Everything of a run on this rank.

    Args:
        folder: of the run, where it may be one that goes on; see `auto_values`.
        model: of the task, if it was built before.

    Collectives: an object broadcast, those of `auto_values` and `shard`; every rank calls it.

    Raises:
        InputError: a start that does not exist, or a plan that cannot serve the model, or needs too much memory.
    """
    # Placing it runs collectives, in which the others would wait for a rank that has no model.
    if model is None:
        model = agreed(lambda: build_model(config, task, defers=parts.ENGINES.chosen(config.engine).plan is None))
    agreed(lambda: parts.ENGINES.chosen(config.engine).prepare(config))
    # Of the weights that all ranks will have.
    frozen = from_first_rank(lambda: frozen_identity(model))
    is_loaded = from_first_rank(lambda: folder is not None and loads_all(folder, config))
    agreed(lambda: check_fits(config, task, model, layout, placement_of(config, model, layout, row_bounds(task))))
    plan = place_weights(config, task, model, layout, draws=not is_loaded)
    return assemble_parts(config, task, layout, model, plan, auto_values(config, model, folder), frozen)


def assemble_parts(
    config: Config,
    task: Task,
    layout: Layout,
    model: nn.Module,
    plan: ShardPlan,
    auto: Mapping[str, float],
    frozen: Mapping[str, str],
) -> RunParts:
    """Everything of a run around a model that was placed by `plan`.

    Args:
        auto, frozen: as of RunParts.

    Collectives: those of building the engine; every rank calls it.

    Raises:
        InputError: an optimizer that does not suit the model.
    """
    config = with_values(config, {f"optim.{key}": value for key, value in auto.items()})
    num_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    optimizer = build_optimizer(config, model, task)
    with warnings.catch_warnings():
        # The run says so itself, once and not on every rank.
        warnings.filterwarnings("ignore", message=".* holds no tensor network")
        coordinator = BalanceCoordinator(model, optimizer, every=config.train.log_every, last_step=config.train.steps)
    engine = parts.ENGINES.chosen(config.engine).build(
        config,
        model,
        optimizer,
        autocast=torch.bfloat16 if config.train.precision == "bf16" else None,
        clip_norm=config.optim.clip_norm,
        schedules=list(_schedules(config, optimizer)),
    )
    return RunParts(layout, task, model, plan, coordinator, engine, auto, num_trained, frozen)


def build_optimizer(config: Config, model: nn.Module, task: Task | None = None) -> Wrapper:
    """The chain that `optim.method` names around `optim.base`, an ascent outermost; call after sharding.

    Args:
        config: of the run.
        model: placed.
        task: of the run; only a base that solves looks at it.

    Raises:
        InputError: an optimizer that does not suit the model.
    """
    optim, base = config.optim, parts.BASES.chosen(config.optim)
    with arguments_as_keys("optim", network="optim.base"):
        chain: Optimizer = base.build(optim, *((model, task) if base.solves else (list(model.parameters()),)))
    for part in reversed(parts.METHODS.split(optim.method)):
        is_rescale = part.word in parts.RESCALES.parts
        if is_rescale and not core_networks(model):
            raise InputError(
                f"optim.method: {part.word} acts on tensor networks, and the model holds none; use base or sam"
            )
        chain = part.build(optim, chain, core_networks(model) if is_rescale else model)
    return chain if isinstance(chain, Wrapper) else Plain(chain, max_skipped=optim.max_skipped)


def _schedules(config: Config, optimizer: Wrapper) -> Iterator[Schedule]:
    """One for each group value that the config does not leave constant and the method uses."""
    optim = config.optim
    used = {key for part in parts.METHODS.split(optim.method) for key in part.keys.model_fields}
    for prefix, word in (("", "lr"), ("rho_", "rho"), ("alpha_", "alpha")):
        if word != "lr" and f"{prefix}schedule" not in used:
            continue
        shape, warmup_steps = getattr(optim, f"{prefix}schedule"), getattr(optim, f"{prefix}warmup_steps")
        if shape != "constant" or warmup_steps:
            key = word if word == "lr" else optimizer.group_key(word)
            yield Schedule(optimizer, key, shape, config.train.steps, warmup_steps, getattr(optim, f"final_{word}"))
