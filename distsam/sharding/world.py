"""The processes of one run: who am I, how many are we, on which device; torchrun, srun, or alone."""

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from distsam.errors import InputError

PLANS = ("replicate", "fsdp")


@dataclass(frozen=True)
class World:
    """One process's place in the run."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device


def open_world(device: str = "auto") -> World:
    """Join the run that torchrun or srun describes in the environment; alone, one process without a group.

    Args:
        device: "cpu", "cuda" or "auto" (cuda where there is one).

    Collectives: starts the default process group (gloo on CPU, nccl on GPU) when the world is larger than 1.

    Raises:
        InputError: an unknown device, or "cuda" on a machine without one.
    """
    rank, size, local = _place(os.environ)
    chosen = _device(device, local)
    if size > 1 and not dist.is_initialized():
        on_gpu = chosen.type == "cuda"
        if on_gpu:
            torch.cuda.set_device(chosen)
        os.environ.update(_rendezvous(os.environ))
        # gloo stays beside nccl: asynchronous checkpoints and other CPU tensors need it.
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", rank=rank, world_size=size)
    return World(rank, size, local, chosen)


def close_world() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def check_plan_name(plan: str) -> None:
    """InputError unless there is a plan of that name."""
    if plan not in PLANS:
        raise InputError(f"sharding.plan={plan}: unknown plan; use one of {', '.join(PLANS)}")


def make_mesh(world: World, plan: str, replicas: int = 1) -> DeviceMesh | None:
    """The device mesh on which `plan` places the weights; None in a world of one process.

    Args:
        plan: "replicate" (one axis) or "fsdp" (one axis, or replicate x shard where replicas > 1).
        replicas: size of the replicate axis of an "fsdp" mesh; it must divide the world size.

    Raises:
        InputError: an unknown plan, or a number of replicas that the world size is no multiple of.
    """
    check_plan_name(plan)
    if replicas < 1 or world.world_size % replicas:
        raise InputError(f"sharding.replicas={replicas}: it must divide the world size, which is {world.world_size}")
    if replicas > 1 and plan == "replicate":
        raise InputError(f"sharding.replicas={replicas}: the plan replicate has no shard axis; leave it at 1")
    if world.world_size == 1:
        return None
    shape: tuple[int, ...] = (world.world_size,)
    axes: tuple[str, ...] = ("replicate",) if plan == "replicate" else ("shard",)
    if replicas > 1:
        shape, axes = (replicas, world.world_size // replicas), ("replicate", "shard")
    return init_device_mesh(world.device.type, shape, mesh_dim_names=axes)


def _place(env: Mapping[str, str]) -> tuple[int, int, int]:
    """(rank, world size, local rank): torchrun's words first, then Slurm's, else alone."""
    if "RANK" in env and "WORLD_SIZE" in env:
        return int(env["RANK"]), int(env["WORLD_SIZE"]), int(env.get("LOCAL_RANK", "0"))
    # Inside an sbatch script or salloc shell there is SLURM_NTASKS but no task: a plain start is alone. Where that
    # shell is a step itself, SLURM_NTASKS counts the job's tasks and only SLURM_STEP_NUM_TASKS those of the step.
    if "SLURM_PROCID" in env and "SLURM_STEP_ID" in env and "SLURM_NTASKS" in env:
        size = env.get("SLURM_STEP_NUM_TASKS", env["SLURM_NTASKS"])
        return int(env["SLURM_PROCID"]), int(size), int(env.get("SLURM_LOCALID", "0"))
    return 0, 1, 0


def _device(name: str, local_rank: int) -> torch.device:
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"sharding.device={name}: use auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("sharding.device=cuda: this machine has no CUDA device; use cpu or auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", local_rank % torch.cuda.device_count())


def _rendezvous(env: Mapping[str, str]) -> dict[str, str]:
    """MASTER_ADDR and MASTER_PORT where the launcher left them out: srun does, torchrun does not."""
    if "MASTER_ADDR" in env and "MASTER_PORT" in env:
        return {}
    nodes = _host_names(env.get("SLURM_STEP_NODELIST", env.get("SLURM_JOB_NODELIST", "")))
    # Jobs on one node and steps of one job must not meet on a port; ports from 32768 on are the system's to give out.
    port = 20000 + (int(env.get("SLURM_JOB_ID", "0")) * 16 + int(env.get("SLURM_STEP_ID", "0")) % 16) % 12000
    return {"MASTER_ADDR": env.get("MASTER_ADDR", nodes[0]), "MASTER_PORT": env.get("MASTER_PORT", str(port))}


def _host_names(nodes: str) -> list[str]:
    """One name a node from Slurm's `gpu[01-16]`."""
    try:
        listing = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True)
        names = listing.stdout.split()
    except (OSError, subprocess.CalledProcessError):
        names = []
    if not names:
        raise InputError(
            f"MASTER_ADDR: is not set, and scontrol could not expand the node list '{nodes}'; "
            "start with torchrun or srun, or set MASTER_ADDR and MASTER_PORT"
        )
    return names
