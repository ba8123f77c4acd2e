"""The folder of one run: what lies where, who may write into it, and whether it holds the same run."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distsam.errors import InputError
from distsam.train.checkpoint_files import finished_checkpoints
from distsam.train.config import Config
from distsam.train.config_file import read_yaml

# What makes two runs the same training: change one and the weights mean something else. Steps, cadences,
# sharding, W&B and the numbers of the optimizer may change between the parts of one run.
_DEFINING_SECTIONS = ("task", "data", "network")
_DEFINING_KEYS = ("run.seed", "optim.method", "optim.base", "train.batch_size", "train.loss")


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
        """Final metrics of the run."""
        return self.path / "summary.json"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    def holds_run(self) -> bool:
        """Whether a run was started here; a folder of checkpoints of which none is whole is no run yet."""
        files = (self.config, self.metrics, self.summary)
        return any(p.exists() for p in files) or bool(finished_checkpoints(self.checkpoints))

    def claim(self, config: str) -> None:
        """Create the folder and write its config.yaml, unless it holds a run already.

        The config comes first: from it a run that is killed at any later moment can be resumed.

        Raises:
            InputError: the folder cannot be created or written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not self.holds_run():
                write_atomically(self.config, config)
        except OSError as error:
            raise InputError(
                f"run.dir: {self.path} cannot be written ({error.strerror}); choose a folder that you may write"
            ) from None


def check_folder(folder: RunFolder, config: Config) -> None:
    """InputError unless `config` may run in `folder`: it holds no run, or, with resume, the same one."""
    parent = next(p for p in (folder.path, *folder.path.absolute().parents) if p.exists())
    if not parent.is_dir():
        raise InputError(f"run.dir: {folder.path} cannot be a folder, because {parent} is a file")
    if folder.checkpoints.exists() and not folder.checkpoints.is_dir():
        raise InputError(f"run.dir: {folder.path} holds a file {folder.checkpoints.name}; choose another run.dir")
    if not os.access(parent, os.W_OK):
        raise InputError(f"run.dir: {folder.path} cannot be written; choose a folder that you may write")
    if not folder.holds_run():
        return
    if config.train.resume == "never":
        raise InputError(
            f"run.dir: {folder.path} holds a run already; choose another run.dir, or set train.resume=auto"
        )
    if not folder.config.exists():
        raise InputError(f"run.dir: {folder.path} has no config.yaml, so it cannot be resumed; choose another")
    _check_same_run(read_yaml(folder.config), config, folder)


def _check_same_run(saved: Mapping[str, Any], config: Config, folder: RunFolder) -> None:
    now = defining_values(config.model_dump())
    before = defining_values(saved)
    for key, value in now.items():
        if key not in before or before[key] != value:
            was = repr(before[key]) if key in before else "absent"
            raise InputError(
                f"{key}: {value!r} differs from the run in {folder.path}, where it is {was}; "
                f"resume with the same {key}, or choose another run.dir"
            )


def defining_values(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key -> value of everything that defines which training this is."""
    values = {}
    for section, content in raw.items():
        for name, value in (content or {}).items():
            key = f"{section}.{name}"
            if section in _DEFINING_SECTIONS or key in _DEFINING_KEYS:
                values[key] = value
    return values


def fingerprint(config: Config) -> str:
    """16 hexadecimal digits, the same for two configs of the same training."""
    text = json.dumps(defining_values(config.model_dump()), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by `text`: a reader, or a crash, sees the old content or the new, never a part."""
    part = path.with_name(f".{path.name}.tmp")
    with part.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(path)
