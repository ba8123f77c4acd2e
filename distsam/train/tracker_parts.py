"""The keys of trackers, and how each is built."""

from pathlib import Path
from typing import Any, Literal

from distsam.errors import renaming
from distsam.train.seams import Field, Section


class WandbKeys(Section):
    """The mirror of metrics.jsonl at Weights & Biases."""

    mode: Literal["disabled", "offline", "online"] = Field(default="disabled", description="Where rows are mirrored.")
    project: str = Field(default="distsam", description="Project of the run.")
    name: str | None = Field(default=None, description="Name of the run; null: the run folder's name.")
    group: str | None = Field(default=None, description="Group of the run.")


class TensorboardKeys(Section):
    """The mirror of metrics.jsonl as files for TensorBoard."""

    dir: str | None = Field(
        default=None, min_length=1, description="Folder of the event files, from the run folder; null: none."
    )


def build_wandb(keys: WandbKeys, folder: Path, config: dict[str, Any], start_step: int) -> Any:
    """The mirror; wandb itself is not imported where it is disabled."""
    from distsam.train.trackers.wandb import WandbTracker

    return WandbTracker(keys.mode, folder, project=keys.project, name=keys.name, group=keys.group, config=config)


def prepare_tensorboard(keys: TensorboardKeys, folder: Path) -> None:
    """ArgumentError where tensorboard is not installed, or its folder could not be written."""
    if keys.dir is not None:
        import distsam.train.trackers.tensorboard  # noqa: F401
        from distsam.runs.folder import RunFolder

        with renaming({"path": "dir"}):
            RunFolder(_event_folder(keys, folder)).check_usable()


def build_tensorboard(keys: TensorboardKeys, folder: Path, config: dict[str, Any], start_step: int) -> Any:
    """The mirror, or None where there is to be none."""
    if keys.dir is None:
        return None
    from distsam.train.trackers.tensorboard import TensorboardTracker

    return TensorboardTracker(_event_folder(keys, folder), start_step, config)


def _event_folder(keys: TensorboardKeys, folder: Path) -> Path:
    # Below the run folder: `tensorboard --logdir runs` then shows all runs, each by its own name.
    return folder / Path(keys.dir or "").expanduser()
