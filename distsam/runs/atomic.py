"""The one way in which a file of a run is replaced."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def write_atomically(path: Path, content: str | Callable[[BinaryIO], object]) -> None:
    """Replace `path` by `content`: a reader, or a crash, sees the old file or the new one, never a part.

    Args:
        path: the file; its folder must exist.
        content: a text, written as UTF-8, or a function that writes into the binary stream that it is given.

    Raises:
        OSError: it cannot be written; the old file is untouched then, as it is when `content` raises.
    """
    part = path.with_name(f".{path.name}.tmp")
    part.unlink(missing_ok=True)
    try:
        # "x" refuses a name that exists: a link under it would have us write into the file that it points to.
        with part.open("xb") as stream:
            if isinstance(content, str):
                stream.write(content.encode("utf-8"))
            else:
                content(stream)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
