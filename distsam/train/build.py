"""From a config to everything that a run needs, in the order in which mistakes are cheapest to find."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from distsam.balance import BalanceCoordinator
from distsam.engine import NativeEngine
from distsam.errors import InputError
from distsam.optim import BAR, DAS, SAM, Plain, Wrapper
from distsam.sharding import Fsdp, Plan, Replicate, ShardPlan, World, make_layout, shard
from distsam.tasks.completion import CompletionTask
from distsam.tasks.entries import Entries
from distsam.tasks.sources import load_source
from distsam.tasks.split import Split, split_entries
from distsam.tensornet import NetworkSpec, TensorNetwork, core_networks, cp, einsum_network, tr, tt, tucker
from distsam.train.config import Config, NetworkConfig
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
        """What the optimizers themselves count, such as `das/clipped`, the same on every rank."""
        return {name: count for name, count in self.optimizer.counters().items() if "/" in name}


def build_problem(config: Config) -> Problem:
    """Load and split the data and shape the network; needs no other process.

    Raises:
        InputError: the data cannot be used, or the network does not fit it.
    """
    data = config.data
    entries = load_source(
        data.source,
        data.path,
        equation=data.equation,
        sizes=data.sizes,
        noise=data.noise,
        seed=data.seed,
    )
    split = split_entries(entries, data.observed, data.validation, data.split, data.fibre_mode, seed=config.run.seed)
    return Problem(entries, split, build_spec(config.network, entries.shape))


def build_spec(network: NetworkConfig, shape: tuple[int, ...]) -> NetworkSpec:
    """The spec that `network` gives for data of this shape.

    Raises:
        InputError: a bond larger than the tensor allows, or sizes that disagree with the data.
    """
    try:
        if network.format == "einsum":
            return _einsum_spec(network.equation or "", dict(network.sizes or {}), shape)
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
    return CompletionTask(
        problem.entries,
        problem.split,
        batch_size=config.train.batch_size,
        loss=config.train.loss,
        standardise=config.data.standardise,
        seed=config.run.seed,
        rank=world.rank,
        world_size=world.world_size,
        device=world.device,
        dtype=getattr(torch, config.network.dtype),
    )


def build_model(config: Config, problem: Problem, task: CompletionTask) -> TensorNetwork:
    """The network at its start, whole, on the task's device; the same on every rank.

    Raises:
        InputError: `network.init_norms` does not give one norm a core, or there is no start from this data.
    """
    network = config.network
    if network.init == "data":
        return TensorNetwork.from_dense(
            _seen(problem, task), problem.spec, seed=config.run.seed, dtype=task.dtype, device=task.device
        )
    if network.init_norms is not None and len(network.init_norms) != problem.spec.num_cores:
        raise InputError(
            f"network.init_norms: {network.init_norms} has {len(network.init_norms)} numbers; "
            f"the network has {problem.spec.num_cores} cores"
        )
    return TensorNetwork(
        problem.spec,
        std=network.init_std or task.target_std,
        norms=network.init_norms,
        generator=torch.Generator().manual_seed(config.run.seed),
        dtype=task.dtype,
        device=task.device,
    )


def build_job(config: Config, problem: Problem, world: World) -> Job:
    """Everything of a run on this rank.

    Collectives: those of `shard`; every rank calls it.

    Raises:
        InputError: a plan that this number of ranks cannot use, a batch larger than the data.
    """
    task = build_task(config, problem, world)
    layout = make_layout(world, build_plan(config))
    model = build_model(config, problem, task)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    plan = build_plan(config).place(shapes, layout.axes)
    shard(model, layout.mesh, plan)
    optimizer = build_optimizer(config, model)
    coordinator = BalanceCoordinator(model, optimizer, every=config.train.log_every, last_step=config.train.steps)
    return Job(world, task, model, plan, optimizer, coordinator, NativeEngine(model, optimizer))


def build_plan(config: Config) -> Plan:
    """The plan that `sharding.plan` names.

    Raises:
        InputError: replicas of a plan that has none.
    """
    name, replicas = config.sharding.plan, config.sharding.replicas
    if name == "fsdp":
        return Fsdp(replicas)
    if replicas > 1:
        raise InputError(f"sharding.replicas={replicas}: the plan replicate has no shard axis; leave it at 1")
    return Replicate()


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


def _seen(problem: Problem, task: CompletionTask) -> torch.Tensor:
    """The training entries as learnt, in a dense tensor that is NaN elsewhere."""
    dense = torch.full(problem.entries.shape, float("nan"), dtype=torch.float64)
    train = problem.split.train
    values = (problem.entries.values[train] - task.scaling.mean) / task.scaling.std
    dense[tuple(torch.from_numpy(problem.entries.indices[train].T))] = torch.from_numpy(values)
    return dense


def _einsum_spec(equation: str, sizes: dict[str, int], shape: tuple[int, ...]) -> NetworkSpec:
    modes = equation.replace(" ", "").partition("->")[2]
    if len(modes) != len(shape):
        raise InputError(f"network.equation: {equation!r} has {len(modes)} modes after '->'; the data has {len(shape)}")
    for position, (mode, size) in enumerate(zip(modes, shape, strict=True)):
        if sizes.setdefault(mode, size) != size:
            raise InputError(
                f"network.sizes: {mode} is {sizes[mode]}; it is mode {position} of the data, of size {size}"
            )
    return einsum_network(equation, sizes)
