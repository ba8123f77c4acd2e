"""metrics.jsonl, the record of a run: one JSON object a logged step."""

import errno
import json
import os
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import Any

from distsam.errors import InputError
from distsam.runs.atomic import write_atomically
from distsam.runs.numbers import is_finite

STEP = "train/step"

Row = dict[str, float | int | None]


class MetricsFile:
    """Appends rows to metrics.jsonl; every row is on its way to the disk before `log` returns.

    Where a row cannot be written, it is kept, and written before the next one that can be.

    Args:
        path: the file.
        start_step: the step from which the run goes on. Rows of later steps are removed: those steps were done before
            an interruption and are not in the checkpoint, so they are about to be done again. At 0 all are removed.

    Attributes:
        num_set_aside: lines that are no rows; they are in the file `aside` now.
        last_kept: step of the last row that was kept; None without any.
        problem: why rows could not be written, while there are any; else None.
    """

    def __init__(self, path: Path, start_step: int) -> None:
        self.path, self.aside = path, path.with_name(f"{path.name}.damaged")
        self.problem: str | None = None
        self.num_set_aside = 0
        self.last_kept: int | None = None
        self._waiting: list[bytes] = []
        if path.exists():
            self._keep_until(start_step)
        # Unbuffered: what could not be written must not be tried again by the stream itself.
        self._stream = _appended(path)

    def _keep_until(self, start_step: int) -> None:
        *lines, last = self.path.read_bytes().split(b"\n")
        # What follows the last end of a line was cut short by a kill, unless it is a row: that is no damage.
        lines += [] if parsed_row(last) is None else [last]
        rows = [(line, parsed_row(line)) for line in lines if line.strip()]
        damaged = [line for line, row in rows if row is None]
        if start_step > 0 and damaged:
            self.num_set_aside = len(damaged)
            with _appended(self.aside) as stream:
                stream.write(b"\n".join(damaged) + b"\n")
        kept = [row for _, row in rows if row is not None and start_step > 0 and row[STEP] <= start_step]
        self.last_kept = max((row[STEP] for row in kept), default=None)
        write_atomically(self.path, "".join(json.dumps(row) + "\n" for row in kept))

    def log(self, row: Mapping[str, float | int | None]) -> None:
        """Append one row; what is not finite becomes null, because JSON has no word for it."""
        clean = {key: value if is_finite(value) else None for key, value in row.items()}
        self._waiting.append(json.dumps(clean, allow_nan=False).encode() + b"\n")
        self.write_waiting()

    def write_waiting(self) -> None:
        """Try to write the rows that could not be written."""
        try:
            if os.fstat(self._stream.fileno()).st_nlink == 0:
                raise FileNotFoundError(errno.ENOENT, "the file was deleted")
            while self._waiting:
                written = self._stream.write(self._waiting[0])
                # Of a row that was cut by a full disk the rest is written when there is room.
                self._waiting[0] = self._waiting[0][written or 0 :]
                if not self._waiting[0]:
                    del self._waiting[0]
            self.problem = None
        except OSError as error:
            self.problem = f"{self.path}: cannot be written ({error.strerror})"

    def close(self) -> None:
        """No more rows; those that wait are tried once more."""
        if not self._stream.closed:
            if self._waiting:
                self.write_waiting()
            self._stream.close()


def _appended(path: Path) -> FileIO:
    """The file, to write behind its end; a link in its place is replaced, because it may lead to somebody's file."""
    if path.is_symlink():
        path.unlink()
    return FileIO(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666), "ab")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; lines that are none (cut short by a kill, or damaged) are left out.

    Raises:
        InputError: there is no such file.
    """
    return read_rows_and_damage(path)[0]


def read_rows_and_damage(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The rows of a metrics.jsonl, and how many of its lines are none.

    Raises:
        InputError: there is no such file.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give the folder of a run") from None
    parsed = [parsed_row(line) for line in content.split(b"\n") if line.strip()]
    rows = [row for row in parsed if row is not None]
    return rows, len(parsed) - len(rows)


def parsed_row(line: bytes) -> dict[str, Any] | None:
    """The row that a line of metrics.jsonl holds; None where it holds none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    has_step = isinstance(row, dict) and isinstance(row.get(STEP), int)
    return row if has_step else None
