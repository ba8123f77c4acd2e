"""The keys of trackers, and how each is built."""

from pathlib import Path
from typing import Any, Literal

from distsam.train.seams import Field, Section


class WandbKeys(Section):
    """The mirror of metrics.jsonl at Weights & Biases."""

    mode: Literal["disabled", "offline", "online"] = Field(default="disabled", description="Where rows are mirrored.")
    project: str = Field(default="distsam", description="Project of the run.")
    name: str | None = Field(default=None, description="Name of the run; null: the run folder's name.")
    group: str | None = Field(default=None, description="Group of the run.")


def build_wandb(keys: WandbKeys, folder: Path, config: dict[str, Any]) -> Any:
    """The mirror; wandb itself is not imported where it is disabled."""
    from distsam.train.trackers.wandb import WandbTracker

    return WandbTracker(keys.mode, folder, project=keys.project, name=keys.name, group=keys.group, config=config)
