"""The rows of a metrics.jsonl as they come: what was read once is not read again."""

import os
from pathlib import Path
from typing import Any

from distsam.runs.rows import parsed_row

# Of a file that is there already: with 500 cores about 150 rows, read in some hundredths of a second.
_FIRST_BYTES = 4 * 2**20


class RowTail:
    """Follows the rows of a run that writes them, without slowing it down.

    Args:
        path: the file; it may come later.
        first_bytes: of a file that is longer when it is first read only the first row and the rows of its last
            `first_bytes` are read.

    Attributes:
        num_bytes: read until now.
    """

    def __init__(self, path: Path, first_bytes: int = _FIRST_BYTES) -> None:
        self._path, self._first_bytes = path, first_bytes
        self.num_bytes = 0
        self._begin_anew(None)

    def _begin_anew(self, identity: tuple[int, int] | None) -> None:
        self._identity, self._position, self._cut = identity, 0, b""

    def read(self) -> tuple[list[dict[str, Any]], bool]:
        """The rows that have come since the last call, and whether all before them are void.

        They are where the file was replaced, as by a run that goes on from a checkpoint, or cut. A line that is still
        being written comes with a later call; lines that are no rows are passed over.
        """
        try:
            with self._path.open("rb") as stream:
                found = os.fstat(stream.fileno())
                identity = (found.st_dev, found.st_ino)
                is_new = identity != self._identity or found.st_size < self._position
                if is_new:
                    self._begin_anew(identity)
                content = self._cut
                if self._position == 0 and found.st_size > 2 * self._first_bytes:
                    content = self._first_row(stream, found.st_size)
                stream.seek(self._position)
                appended = stream.read(max(0, found.st_size - self._position))
        except OSError:
            was_there = self._identity is not None
            self._begin_anew(None)
            return [], was_there
        self._position += len(appended)
        self.num_bytes += len(appended)
        *lines, self._cut = (content + appended).split(b"\n")
        return [row for row in map(parsed_row, lines) if row is not None], is_new

    def _first_row(self, stream: Any, size: int) -> bytes:
        """The first line of a long file; what is read after it begins in the middle of a line, which is no row."""
        line: bytes = stream.readline(self._first_bytes)
        self._position = size - self._first_bytes
        self.num_bytes += len(line)
        return line
