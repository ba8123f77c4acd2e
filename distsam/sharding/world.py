"""The processes of one run: who am I, how many are we, on which device; torchrun, srun, or alone."""

import os
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count

import torch
import torch.distributed as dist

from distsam.environment import place
from distsam.errors import ArgumentError, InputError
from distsam.sharding.arrival import meet, start_timeout_s


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
        ArgumentError: an unknown device, or "cuda" on a machine without one.
        InputError: some ranks did not come in time, at the first start of a launch; see `arrival.meet`.
    """
    rank, size, local, _ = place(os.environ)
    chosen = _device(device, local)
    if size > 1 and not dist.is_initialized():
        on_gpu = chosen.type == "cuda"
        if on_gpu:
            torch.cuda.set_device(chosen)
        os.environ.update(_rendezvous(os.environ))
        # gloo stays beside nccl: asynchronous checkpoints and other CPU tensors need it.
        backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
        dist.init_process_group(backend, store=_new_store(rank, size), rank=rank, world_size=size)
    return World(rank, size, local, chosen)


# Where the ranks of this launch meet, and how often they have.
_meetings: tuple[dist.Store, Iterator[int]] | None = None


def _new_store(rank: int, world_size: int) -> dist.Store:
    """A store for one more process group of the same launch, with keys of its own.

    By itself torch uses the same keys every time: a rank that begins its second run, while another still ends its
    first, finds that one's old address, and both wait for ever.
    """
    global _meetings
    if _meetings is None:
        _meetings = meet(rank, world_size, start_timeout_s()), count()
    return dist.PrefixStore(f"distsam-{next(_meetings[1])}", _meetings[0])


def close_world() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _device(name: str, local_rank: int) -> torch.device:
    if name not in ("auto", "cpu", "cuda"):
        raise ArgumentError("device", f"{name}: use auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ArgumentError("device", "cuda: this machine has no CUDA device; use cpu or auto")
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
