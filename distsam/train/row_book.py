"""One row a logged step, from numbers that become known at different times."""

from collections.abc import Callable, Mapping

from distsam.runs.rows import STEP, Row


class RowBook:
    """Joins the numbers of a step and writes them as one row, in the order of the steps.

    The balance of step t is known only when step t + 1 is under way, its evaluation at once.

    Args:
        write: takes each finished row.
    """

    def __init__(self, write: Callable[[Row], None]) -> None:
        self._write = write
        self._open: dict[int, Row] = {}
        self._waiting: set[int] = set()

    def open(self, step: int, numbers: Mapping[str, float | int | None], waits: bool) -> None:
        """Begin the row of `step`; it `waits` where `close` will add the rest."""
        self._open.setdefault(step, {STEP: step}).update(numbers)
        if waits:
            self._waiting.add(step)
        self._write_finished()

    def close(self, step: int, numbers: Mapping[str, float | int | None]) -> None:
        """Add the rest of the row of `step`."""
        self._open.setdefault(step, {STEP: step}).update(numbers)
        self._waiting.discard(step)
        self._write_finished()

    def _write_finished(self) -> None:
        for step in sorted(self._open):
            if step in self._waiting:
                return
            self._write(self._open.pop(step))
