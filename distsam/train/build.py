"""From a config to everything that a run needs, in the order in which mistakes are cheapest to find."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from distsam.balance import BalanceCoordinator
from distsam.engine import NativeEngine
from distsam.errors import ArgumentError, InputError
from distsam.optim import BAR, DAS, SAM, Plain, Wrapper
from distsam.sharding import ShardPlan, World, make_mesh, plan_shards, shard
from distsam.sharding.collectives import all_reduce_sum_
from distsam.tasks.completion import CompletionTask
from distsam.tasks.entries import Entries
from distsam.tasks.files import read_entries
from distsam.tasks.sources import load_bundled, lowrank
from distsam.tasks.split import Split, split_entries
from distsam.tasks.task import TaskContext
from distsam.tensornet import NetworkSpec, TensorNetwork, core_networks, cp, tr, tt, tucker
from distsam.tensornet.formats import einsum_of_shape
from distsam.train.config import Config, DataConfig, NetworkConfig
from distsam.train.config_checks import split_method


@dataclass(frozen=True, eq=False)
class Problem:
    """What is to be learnt, before any weight exists: data, its parts, the network's shapes."""

    entries: Entries
    split: Split
    spec: NetworkSpec


@dataclass(frozen=True, eq=False)
class Job:
    """A run that is ready for its first step."""

    world: World
    task: CompletionTask
    model: TensorNetwork
    plan: ShardPlan
    optimizer: Wrapper
    coordinator: BalanceCoordinator
    engine: NativeEngine

    def counts(self) -> dict[str, float | int | None]:
        """`das/clipped`, how often DAS hit its bound so far, the same on every rank; nothing without DAS."""
        has_das = any(isinstance(wrapper, DAS) for wrapper in self.optimizer.chain())
        return {"das/clipped": self.optimizer.num_clipped_in_chain} if has_das else {}


def build_problem(config: Config) -> Problem:
    """Load and split the data and shape the network; needs no other process.

    Raises:
        InputError: the data cannot be used, or the network does not fit it.
    """
    data = config.data
    with _section("data"):
        entries = _load(data)
        seed = config.run.seed
        split = split_entries(entries, data.observed, data.validation, data.fibre_mode, seed)
    return Problem(entries, split, build_spec(config.network, entries.shape))


def _load(data: DataConfig) -> Entries:
    if data.source == "file":
        return read_entries(data.path or "")
    if data.source == "lowrank":
        return lowrank(data.equation or "", data.sizes or {}, noise=data.noise, seed=data.seed)
    return load_bundled(data.source)


def build_spec(network: NetworkConfig, shape: tuple[int, ...]) -> NetworkSpec:
    """The spec that `network` gives for data of this shape.

    Raises:
        InputError: a bond larger than the tensor allows, or sizes that disagree with the data.
    """
    try:
        if network.format == "einsum":
            return einsum_of_shape(network.equation or "", network.sizes or {}, shape)
        if network.format == "tucker":
            return tucker(shape, network.ranks or [])
        assert network.bond_dim is not None
        if network.format == "cp":
            return cp(shape, network.bond_dim)  # type: ignore[arg-type]  # cp itself refuses a list
        return {"tt": tt, "tr": tr}[network.format](shape, network.bond_dim)
    except InputError as error:
        message = str(error)
        raise InputError(message if message.startswith("network") else f"network.{message}") from None


def build_task(config: Config, problem: Problem, world: World) -> CompletionTask:
    """The completion task of this rank."""
    context = TaskContext(
        seed=config.run.seed,
        data_rank=world.rank,
        data_size=world.world_size,
        device=world.device,
        dtype=getattr(torch, config.network.dtype),
        sum_over_ranks=all_reduce_sum_,
    )
    network = config.network
    with _section("train", init="network", init_std="network", init_norms="network"):
        return CompletionTask(
            context,
            problem.entries,
            problem.split,
            problem.spec,
            batch_size=config.train.batch_size,
            loss=config.train.loss,
            standardise=config.data.standardise,
            init=network.init,
            init_std=network.init_std,
            init_norms=network.init_norms,
        )


def build_job(config: Config, problem: Problem, world: World) -> Job:
    """Everything of a run on this rank.

    Collectives: those of `shard`; every rank calls it.

    Raises:
        InputError: a plan that this number of ranks cannot use, a batch larger than the data.
    """
    task = build_task(config, problem, world)
    mesh = make_mesh(world, config.sharding.plan, config.sharding.replicas)
    with _section("network"):
        model = task.build_model()
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    plan = plan_shards(shapes, config.sharding.plan, (1,) if mesh is None else tuple(mesh.shape))
    shard(model, mesh, plan)
    optimizer = build_optimizer(config, model)
    coordinator = BalanceCoordinator(model, optimizer, every=config.train.log_every, last_step=config.train.steps)
    return Job(world, task, model, plan, optimizer, coordinator, NativeEngine(model, optimizer))


def build_optimizer(config: Config, model: nn.Module) -> Wrapper:
    """The chain that `optim.method` names around `optim.base`, SAM outermost; call after sharding."""
    optim = config.optim
    parts = split_method(optim.method)
    chain: Optimizer = _base_optimizer(config, model)
    for part in parts:
        if part == "das":
            chain = DAS(
                chain,
                core_networks(model),
                alpha=optim.alpha or 0.0,
                norm=optim.norm,
                lambda_max=optim.lambda_max,
                max_skipped=optim.max_skipped,
            )
        elif part in ("nbar", "obar"):
            chain = BAR(
                chain,
                core_networks(model),
                alpha=optim.alpha or 0.0,
                rule=part,
                max_skipped=optim.max_skipped,
            )
    if "sam" in parts:
        return SAM(chain, optim.rho, optim.scope, model=model, max_skipped=optim.max_skipped)
    return chain if isinstance(chain, Wrapper) else Plain(chain, max_skipped=optim.max_skipped)


def _base_optimizer(config: Config, model: nn.Module) -> Optimizer:
    optim = config.optim
    if optim.base == "sgd":
        return SGD(model.parameters(), lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay)
    kind = {"adam": Adam, "adamw": AdamW}[optim.base]
    return kind(model.parameters(), lr=optim.lr, weight_decay=optim.weight_decay)


@contextmanager
def _section(section: str, **sections: str) -> Iterator[None]:
    """Name the config key of an argument that cannot be used: in `section`, or in the one given for it."""
    try:
        yield
    except ArgumentError as error:
        raise InputError(f"{sections.get(error.argument.partition('[')[0], section)}.{error}") from None
