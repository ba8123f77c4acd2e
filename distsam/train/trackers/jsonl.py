"""The record of a run: metrics.jsonl."""

from collections.abc import Mapping
from pathlib import Path

from distsam.runs.rows import MetricsFile


class JsonlTracker:
    """Writes every row into metrics.jsonl.

    Args:
        path: the file.
        start_step: the step from which the run goes on; see `MetricsFile`.
    """

    def __init__(self, path: Path, start_step: int) -> None:
        self._file = MetricsFile(path, start_step)

    @property
    def problem(self) -> str | None:
        """Why rows wait to be written; None if none do."""
        return self._file.problem

    @property
    def set_aside(self) -> str | None:
        """A line about lines of the file that are no rows, where there were any."""
        count = self._file.num_set_aside
        if not count:
            return None
        return (
            f"{self._file.path}: {count} line{'s are' if count > 1 else ' is'} damaged and kept in {self._file.aside}"
        )

    def missing(self, step: int, cadence: int) -> str | None:
        """A line about rows that a run which goes on after `step`, with a row every `cadence` steps, should have."""
        last = self._file.last_kept
        if step <= (last or 0) + cadence:
            return None
        found = "there are none" if last is None else f"the last one is of step {last}"
        return f"{self._file.path}: rows before step {step} are missing ({found}); curves will lack them"

    def log(self, row: Mapping[str, float | int | None]) -> None:
        """Append the row; it can be read by others before this returns, unless there is a `problem`."""
        self._file.log(row)

    def alert(self, message: str) -> None:
        """Does nothing: the file holds rows only, so that it can be read as a table."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()
