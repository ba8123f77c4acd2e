"""Which process of a run is this? As torchrun says, else as Slurm says, else the only one. Imports no torch."""

import os
from collections.abc import Mapping
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
