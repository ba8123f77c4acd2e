"""The folder of checkpoints: which of them are whole, and whether what they hold is what was written."""

import hashlib
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from distsam.runs.atomic import write_atomically

INDEX = ".metadata"
STATE = "state.json"
CONTENTS = "contents.json"
UNFINISHED = ".tmp"
# Beside a file of tensors, its checksum, as the rank that wrote it took it.
CHECKSUM = ".sha256"
_CHUNK_BYTES = 2**20


def finished_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder` whose files are all there, oldest first; one that was cut short is not among them.

    What is in the files is not read; see `damage`.
    """
    return [path for path in published_checkpoints(folder) if _missing(path) is None]


def published_checkpoints(folder: Path) -> list[Path]:
    """All checkpoints that were whole once, oldest first, whatever has become of them."""
    return sorted((p for p in folder.glob("step-*") if step_of(p) is not None), key=lambda p: step_of(p) or 0)


def damage(path: Path, part: int = 0, num_parts: int = 1) -> str | None:
    """What is wrong in the checkpoint folder `path`: the first file whose content is not what was written; or None.

    Args:
        part, num_parts: look at every `num_parts`-th file only, from the `part`-th on; so ranks share the reading.
    """
    problem = _missing(path)
    if problem is not None:
        return problem
    step = step_of(path)
    if step is None:
        return f"its name {path.name} is no step-XXXXXXXX"
    for name, written in sorted(_contents(path)["sha256"].items())[part::num_parts]:
        try:
            if sha256_of(path / name) != written:
                return f"{name} is not what was written (its checksum differs)"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    try:
        said = json.loads((path / STATE).read_text(encoding="utf-8")).get("step")
    except (OSError, ValueError, AttributeError):  # its checksum may be another rank's to take
        return f"{STATE} cannot be read"
    return None if said == step else f"{STATE} says step {said}"


def step_of(path: Path) -> int | None:
    """The step in a checkpoint's name; None where it has another name."""
    digits = path.name.removeprefix("step-")
    return int(digits) if digits.isdecimal() else None


def seal(folder: Path, state: dict[str, Any]) -> None:
    """Complete a checkpoint whose tensors are on the disk: what it says beside them, and a checksum of every file."""
    _write_json(folder / STATE, state)
    checksums, sizes = {}, {}
    for file in sorted(p for p in folder.iterdir() if p.name != CONTENTS):
        if file.suffix == CHECKSUM:
            continue
        taken = file.with_name(file.name + CHECKSUM)
        checksums[file.name] = taken.read_text() if taken.exists() else sha256_of(file)
        sizes[file.name] = file.stat().st_size
    contents = {"sizes": sizes, "sha256": checksums}
    _write_json(folder / CONTENTS, {**contents, "sha256_of_this": _sha256_of_contents(contents)})
    sync_folder(folder)


def sha256_of(file: Path) -> str:
    """Hexadecimal digest of the content of `file`, read in pieces."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while piece := stream.read(_CHUNK_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def sync_folder(folder: Path) -> None:
    """Return when the names in `folder` are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_unfinished(folder: Path) -> None:
    """Remove what is left of checkpoints that were not finished, be it a folder, a file or a link."""
    for leftover in folder.glob(f"step-*{UNFINISHED}"):
        remove(leftover)


def remove(path: Path) -> None:
    """Remove a folder, a file, or a link, not what it points to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _missing(path: Path) -> str | None:
    """What is missing or of another size, without reading any tensors; None if nothing is."""
    try:
        contents = _contents(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{CONTENTS} is missing or damaged"
    if STATE not in contents["sizes"] or INDEX not in contents["sizes"]:
        return f"{CONTENTS} is damaged"
    for name, size in contents["sizes"].items():
        found = None
        with suppress(OSError):
            found = (path / name).stat().st_size
        if found != size:
            return f"{name} is missing" if found is None else f"{name} has {found} bytes in place of {size}"
    return None


def _contents(path: Path) -> dict[str, Any]:
    """What contents.json says; a ValueError where it does not agree with itself."""
    contents = json.loads((path / CONTENTS).read_text(encoding="utf-8"))
    own = contents.pop("sha256_of_this")
    if own != _sha256_of_contents(contents) or contents["sizes"].keys() != contents["sha256"].keys():
        raise ValueError("its checksum differs")
    return dict(contents)


def _sha256_of_contents(contents: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()


def _write_json(file: Path, value: dict[str, Any]) -> None:
    write_atomically(file, json.dumps(value, indent=1))
