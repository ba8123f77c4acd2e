"""The one way in which a file of a run is replaced."""

import os
import re
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

_PART = ".tmp"


def write_atomically(path: Path, content: str | Callable[[BinaryIO], object]) -> None:
    """Replace `path` by `content`: a reader, or a crash, sees the old file or the new one, never a part.

    Args:
        path: the file; its folder must exist.
        content: a text, written as UTF-8, or a function that writes into the binary stream that it is given.

    Raises:
        OSError: it cannot be written; the old file is untouched then, as it is when `content` raises.
    """
    # A name that nobody can know before: two writers never share it, and no link can be waiting under it. Short, so
    # that a name that the file system takes is not made too long.
    part = path.with_name(f".{secrets.token_hex(8)}{_PART}")
    try:
        # "x" refuses a name that exists.
        with part.open("xb") as stream:
            if isinstance(content, str):
                stream.write(content.encode("utf-8"))
            else:
                content(stream)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def is_part(path: Path) -> bool:
    """Whether this is what a writer that was killed has left."""
    return re.fullmatch(rf"\.[0-9a-f]{{16}}{re.escape(_PART)}", path.name) is not None


def remove_parts(folder: Path) -> None:
    """Remove what writers that were killed have left in `folder`."""
    for leftover in folder.glob(f".{'[0-9a-f]' * 16}{_PART}"):
        with suppress(OSError):  # a folder of that name is none of ours, and in nobody's way
            leftover.unlink()
