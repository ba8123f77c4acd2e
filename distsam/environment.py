"""Which process of a run is this, and what has its machine left? As torchrun says, else as Slurm says, else the only
one. Imports no torch."""

import os
import re
import resource
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple


class Place(NamedTuple):
    """This process among those of the run."""

    rank: int
    world_size: int
    local_rank: int
    is_launched: bool


def place(env: Mapping[str, str] = os.environ) -> Place:
    """Rank, world size and rank on this machine, as torchrun or srun wrote them into the environment."""
    if "RANK" in env and "WORLD_SIZE" in env:
        return Place(int(env["RANK"]), int(env["WORLD_SIZE"]), int(env.get("LOCAL_RANK", "0")), True)
    # Inside an sbatch script or salloc shell there is SLURM_NTASKS but no task: a plain start is alone. Where that
    # shell is a step itself, SLURM_NTASKS counts the job's tasks and only SLURM_STEP_NUM_TASKS those of the step.
    if "SLURM_PROCID" in env and "SLURM_STEP_ID" in env and "SLURM_NTASKS" in env:
        size = env.get("SLURM_STEP_NUM_TASKS", env["SLURM_NTASKS"])
        return Place(int(env["SLURM_PROCID"]), int(size), int(env.get("SLURM_LOCALID", "0")), True)
    return Place(0, 1, 0, False)


def machine(env: Mapping[str, str] = os.environ) -> int | None:
    """The number of this machine among those of the run, where the launcher says so: torchrun does, srun does not."""
    return int(env["GROUP_RANK"]) if "RANK" in env and "GROUP_RANK" in env else None


def processes_here(env: Mapping[str, str] = os.environ) -> int:
    """How many processes of the run share this machine's memory, this one included."""
    if "RANK" in env and "LOCAL_WORLD_SIZE" in env:
        return int(env["LOCAL_WORLD_SIZE"])
    if not place(env).is_launched:
        return 1
    # Slurm writes the tasks of its machines one after the other, "4(x2),1" for 4, 4, 1.
    written = env.get("SLURM_STEP_TASKS_PER_NODE", env.get("SLURM_TASKS_PER_NODE", "1"))
    groups = re.findall(r"(\d+)(?:\(x(\d+)\))?", written)
    tasks = [int(count) for count, times in groups for _ in range(int(times or 1))]
    return tasks[min(int(env.get("SLURM_NODEID", "0")), len(tasks) - 1)] if tasks else 1


def available_bytes() -> int:
    """Memory that this process can still take: its share of the machine's and of its control group's, which the other
    processes of the run take from too, and what its own limit leaves it."""
    found = [2**63]
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]))
    with suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        found.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    found = [num_bytes // processes_here() for num_bytes in found]
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        with suppress(OSError, ValueError):
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            found.append(limit - pages * resource.getpagesize())
    return max(0, min(found))


def free_here(num_bytes: int) -> str:
    """What `available_bytes` found, for people, "3.2 GiB are free here"."""
    ranks = processes_here()
    return f"{in_units(num_bytes)} are free here{f' for each of {ranks} ranks' if ranks > 1 else ''}"


def in_units(num_bytes: float) -> str:
    """A number of bytes for people, "3.2 GiB"."""
    units = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
    power = 0
    while num_bytes >= 1024 and power < len(units) - 1:
        num_bytes, power = num_bytes / 1024, power + 1
    return f"{num_bytes:.3g} {units[power]}"
