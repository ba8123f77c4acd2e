"""The folder of checkpoints: which of them are whole."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from distsam.runs.atomic import write_atomically

INDEX = ".metadata"
STATE = "state.json"
CONTENTS = "contents.json"
UNFINISHED = ".tmp"


def finished_checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints in `folder`, oldest first; one that was cut short is not among them."""
    return sorted(p for p in _published(folder) if _is_whole(p))


def damaged_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints that were whole once: a file of theirs is gone, of another size, or their index is another."""
    return sorted(p for p in _published(folder) if not _is_whole(p))


def seal(folder: Path, state: dict[str, Any]) -> None:
    """Complete a checkpoint whose tensors are on the disk: what it says beside them, and what the folder must hold."""
    tensors = sorted(p for p in folder.iterdir() if p.name not in (STATE, CONTENTS))
    sizes = {p.name: p.stat().st_size for p in tensors}
    _write_json(folder / CONTENTS, {"sizes": sizes, "index_sha256": _sha256(folder / INDEX)})
    _write_json(folder / STATE, state)
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Return when the names in `folder` are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _published(folder: Path) -> list[Path]:
    return [p for p in folder.glob("step-*") if p.suffix != UNFINISHED]


def _is_whole(path: Path) -> bool:
    try:
        contents = json.loads((path / CONTENTS).read_text(encoding="utf-8"))
        has_size = [(path / name).stat().st_size == size for name, size in contents["sizes"].items()]
        return all(has_size) and (path / STATE).is_file() and _sha256(path / INDEX) == contents["index_sha256"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _write_json(file: Path, value: dict[str, Any]) -> None:
    write_atomically(file, json.dumps(value, indent=1))
