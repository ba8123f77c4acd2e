"""Which plan sharding.plan=auto takes: what the planner needs to know, from the config, the task and the model."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._pytree import tree_leaves

from distsam.environment import available_bytes
from distsam.errors import ArgumentError
from distsam.sharding.cost import State, StepForm, Weights
from distsam.sharding.groups import shard_groups
from distsam.sharding.network_cost import NetworkUse
from distsam.sharding.pieces import network_weights
from distsam.sharding.planner import Choice, Machine, Training, choose_plan, is_worth_cutting
from distsam.sharding.traffic import Link
from distsam.tasks.task import Task
from distsam.tensornet import core_networks
from distsam.train import parts
from distsam.train.config import Config
from distsam.train.network_uses import seen_uses
from distsam.train.placement import link_of, reduction_of

# Operations a second, and bytes that are read or written, in round figures: of a GPU in float32, and of the CPU thread
# that `tensornet.cost` was measured on.
FLOPS_PER_S = {"cuda": 1e13, "cpu": 6e10}
MEMORY_BYTES_PER_S = {"cuda": 2e12, "cpu": 2e10}


def choose(
    config: Config,
    task: Task,
    model: nn.Module,
    pieces: Sequence[Any],
    world_size: int,
    machine: Machine,
    device: torch.device,
    mode: FakeTensorMode | None = None,
) -> Choice:
    """The plan for the run; no collective.

    Args:
        config: of the run.
        task: of the run.
        model: of the task, whole, before it is placed.
        pieces: the micro-batches of the first step, as the first of `world_size` data ranks has them.
        world_size: number of ranks.
        machine: what each of them computes with.
        device: where the model is to be.
        mode: in which `model` was made, if it was made of shapes alone.
    """
    times = len(pieces) * world_size
    lengths = [len(leaf) for leaf in tree_leaves(pieces[0]) if isinstance(leaf, Tensor) and leaf.dim()]
    found = training_of(config, model, times * max(lengths, default=1), machine.link)
    if is_worth_cutting(found, world_size, machine):
        uses = seen_uses(task, model, pieces[0], times=times, device=device, mode=mode)
        found = training_of(config, model, found.batch, machine.link, uses)
    return choose_plan(found, world_size, machine)


def chosen_keys(choice: Choice) -> dict[str, Any]:
    """Dotted key -> value of a config that names the plan of `choice`."""
    candidate = choice.chosen.candidate
    return {"sharding.plan": candidate.kind, **{f"sharding.{key}": value for key, value in candidate.keys}}


def training_of(
    config: Config, model: nn.Module, batch: int, link: Link, uses: tuple[NetworkUse, ...] = ()
) -> Training:
    """What the planner knows of the run.

    Args:
        config: of the run.
        model: whole.
        batch: examples of a step, of all ranks together.
        link: between the ranks.
        uses: of the model's networks.
    """
    named = dict(model.named_parameters())
    trained = frozenset(name for name, param in named.items() if param.requires_grad)
    networks = core_networks(model)
    cores = {id(core) for network in networks for core in network.cores}
    groups, problem = _groups(model)
    weights = Weights(
        itemsizes={name: param.element_size() for name, param in named.items()},
        cores=frozenset(name for name, param in named.items() if id(param) in cores),
        trained=trained,
        groups=groups,
    )
    return Training(
        shapes={name: tuple(param.shape) for name, param in named.items()},
        weights=weights,
        networks=network_weights(model),
        uses=uses,
        state=_state_of(config),
        step=StepForm(
            (len(trained) + 2 + len(cores),) * _num_passes(config),
            config.train.accumulate,
            reduction_of(config, link),
        ),
        batch=batch,
        is_routable=parts.TASKS.chosen(config.task).is_routable(config),
        no_fsdp=problem,
    )


def machine_of(config: Config, device: torch.device, model: nn.Module, world_size: int) -> Machine:
    """What this rank computes with.

    Args:
        config: of the run; sharding.memory_gib and sharding.link say otherwise.
        device: of this rank.
        model: already in memory, as far as it has numbers.
        world_size: number of ranks.
    """
    return Machine(
        memory_of(config, device, model),
        link_of(config, device, world_size),
        FLOPS_PER_S.get(device.type, FLOPS_PER_S["cuda"]),
        MEMORY_BYTES_PER_S.get(device.type, MEMORY_BYTES_PER_S["cuda"]),
        copies_checkpoints=device.type == "cpu",
    )


def planned_machine(config: Config, link: Link, flops_per_s: float) -> Machine:
    """What a rank of a run that is only planned would compute with; where the config gives no memory, this machine's.

    Args:
        config: of the run.
        link, flops_per_s: as of `Machine`.
    """
    use_gpu = torch.cuda.is_available() and config.sharding.device != "cpu"
    # Ranks are taken for GPUs, unless the config says CPU, or the memory is that of this machine, which has none.
    on_cpu = config.sharding.device == "cpu" or not (use_gpu or config.sharding.memory_gib is not None)
    memory = memory_of(config, torch.device("cuda" if use_gpu else "cpu"))
    return Machine(memory, link, flops_per_s, MEMORY_BYTES_PER_S["cuda"], copies_checkpoints=on_cpu)


def memory_of(config: Config, device: torch.device, model: nn.Module | None = None) -> int:
    """Bytes that a rank may take, with what the model takes already: of the GPU all, of main memory its share."""
    if config.sharding.memory_gib is not None:
        return int(config.sharding.memory_gib * 2**30)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    there = [] if model is None else [p for p in model.parameters() if not p.is_meta]
    return available_bytes() + sum(p.numel() * p.element_size() for p in there)


def _groups(model: nn.Module) -> tuple[tuple[tuple[str, ...], ...], str]:
    """What FSDP2 gathers together, and why it cannot serve the model, "" if it can."""
    frozen = {param for param in model.parameters() if not param.requires_grad}
    try:
        return tuple(tuple(group.params) for group in shard_groups(model, frozen)), ""
    except ArgumentError as error:
        return (), error.problem


def _num_passes(config: Config) -> int:
    return 2 if any(part.word in parts.ASCENTS.parts for part in parts.METHODS.split(config.optim.method)) else 1


def _state_of(config: Config) -> State:
    """What the base optimizer keeps of a parameter, as one of four numbers shows; one that solves keeps nothing."""
    if parts.BASES.chosen(config.optim).solves:
        return State(0, 0)
    with unset_fake_temporarily():
        return _state_after_a_step(config)


def _state_after_a_step(config: Config) -> State:
    param = nn.Parameter(torch.zeros(4, device="cpu"))
    base = parts.BASES.chosen(config.optim).build(config.optim.model_copy(update=_NUMBERS), [param])
    param.grad = torch.ones_like(param)
    base.step()
    tensors = [value for value in base.state[param].values() if isinstance(value, Tensor)]
    alike = [tensor for tensor in tensors if tensor.shape == param.shape]
    return State(len(alike), sum(t.numel() * t.element_size() for t in tensors if t.shape != param.shape))


# Any will do: the state has the same form.
_NUMBERS: Mapping[str, float] = {"lr": 1e-3, "weight_decay": 0.0}
