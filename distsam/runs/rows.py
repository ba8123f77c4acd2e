"""metrics.jsonl, the record of a run: one JSON object a logged step."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distsam.errors import InputError
from distsam.runs.atomic import write_atomically
from distsam.runs.numbers import is_finite

STEP = "train/step"

Row = dict[str, float | int | None]


class MetricsFile:
    """Appends rows to metrics.jsonl; every row is on its way to the disk before `log` returns.

    Args:
        path: the file.
        start_step: the step from which the run goes on. Rows of later steps are removed: those steps were done before
            an interruption and are not in the checkpoint, so they are about to be done again. At 0 all are removed.
    """

    def __init__(self, path: Path, start_step: int) -> None:
        if path.exists():
            kept = [row for row in read_rows(path) if start_step > 0 and row[STEP] <= start_step]
            write_atomically(path, "".join(json.dumps(row) + "\n" for row in kept))
        self._stream = path.open("a", encoding="utf-8")

    def log(self, row: Mapping[str, float | int | None]) -> None:
        """Append one row; what is not finite becomes null, because JSON has no word for it."""
        clean = {key: value if is_finite(value) else None for key, value in row.items()}
        self._stream.write(json.dumps(clean, allow_nan=False) + "\n")
        self._stream.flush()

    def close(self) -> None:
        """No more rows."""
        self._stream.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; lines that are none (cut short by a kill, or damaged) are left out.

    Raises:
        InputError: there is no such file.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give the folder of a run") from None
    rows = (_parsed(line) for line in content.split(b"\n"))
    return [row for row in rows if row is not None]


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    has_step = isinstance(row, dict) and isinstance(row.get(STEP), int)
    return row if has_step else None
