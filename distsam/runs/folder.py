"""The folder of one run: what lies where, and whether a run may begin in it."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distsam.errors import ArgumentError
from distsam.runs.atomic import remove_parts, write_atomically
from distsam.runs.checkpoints import finished_checkpoints
from distsam.runs.lock import RunLock


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run; nothing is created by naming them."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved config."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """One JSON object a logged step."""
        return self.path / "metrics.jsonl"

    @property
    def summary(self) -> Path:
        """Final scores of the run, and what it was."""
        return self.path / "summary.json"

    @property
    def about(self) -> Path:
        """What a run that is under way is to come to."""
        return self.path / "about.json"

    @property
    def curves(self) -> Path:
        """The picture of the rows."""
        return self.path / "curves.png"

    @property
    def wandb_id(self) -> Path:
        """The run's name at Weights & Biases."""
        return self.path / "wandb-id"

    @property
    def labels(self) -> Path:
        """What the positions along the modes are called, for data that came with names."""
        return self.path / "labels.json"

    @property
    def refit(self) -> Path:
        """The run folder of the second fit, to all that is not held out; summary.json says whether it counts."""
        return self.path / "refit"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    def is_run(self) -> bool:
        """Whether this is the folder of a run; False for anything else, such as a name that no folder can have."""
        try:
            return self.config.is_file()
        except (OSError, ValueError):
            return False

    def holds_run(self) -> bool:
        """Whether a run was started here; a folder of checkpoints of which none is whole is no run yet."""
        files = (self.config, self.metrics, self.summary)
        return any(p.exists() for p in files) or bool(finished_checkpoints(self.checkpoints))

    def check_usable(self) -> None:
        """Raise where no run could be kept here, whatever the folder holds.

        Raises:
            ArgumentError: of `path`: a file is in the way, or it cannot be written, or no folder can be called so.
        """
        try:
            parent = next(p for p in (self.path, *self.path.absolute().parents) if p.exists())
        except OSError as error:
            raise ArgumentError("path", f"{self.path} cannot be used ({error.strerror}); choose another") from None
        if not parent.is_dir():
            raise ArgumentError("path", f"{self.path} cannot be a folder, because {parent} is a file")
        if self.checkpoints.exists() and not self.checkpoints.is_dir():
            raise ArgumentError("path", f"{self.path} holds a file {self.checkpoints.name}; choose another folder")
        for file in (self.config, self.metrics, self.summary, self.about, self.curves, self.labels, self.lock):
            if file.is_dir():
                raise ArgumentError("path", f"{self.path} holds a folder {file.name}; remove it, or choose another")
        if not os.access(parent, os.W_OK):
            raise ArgumentError("path", f"{self.path} cannot be written; choose a folder that you may write")

    @property
    def lock(self) -> Path:
        """Held by the run that writes here."""
        return self.path / "lock"

    def claim(self, config: str, check: Callable[[], None] = lambda: None) -> RunLock:
        """Create the folder, lock it, and write `config` into its config.yaml, unless it holds a run already.

        The config comes first: from it a run that is killed at any later moment can be resumed.

        Args:
            config: its text.
            check: raises where the folder, as it is once nobody else writes there, cannot be used.

        Returns:
            The lock, to be released when the run is over.

        Raises:
            ArgumentError: of `path`: another run writes there, or the folder cannot be created or written.
        """
        lock = None
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = RunLock(self.lock)
            check()
            remove_parts(self.path)
            if not self.holds_run():
                self.write_config(config)
        except BaseException as error:
            if lock is not None:
                lock.release()
            if not isinstance(error, OSError):
                raise
            raise ArgumentError(
                "path", f"{self.path} cannot be written ({error.strerror}); choose a folder that you may write"
            ) from None
        return lock

    def write_labels(self, labels: dict[str, Any]) -> None:
        """Write labels.json."""
        write_atomically(self.labels, json.dumps(labels, indent=1, ensure_ascii=False) + "\n")

    def write_config(self, config: str) -> None:
        """Replace config.yaml: a run that goes on may do so with other steps, cadences and rates."""
        write_atomically(self.config, config)
