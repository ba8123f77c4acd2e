"""What a person sees while it trains: a bar in a terminal, plain lines anywhere else."""

import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, TextIO

from distsam.runs.rows import STEP

if TYPE_CHECKING:
    from rich.progress import Progress

_BAR_EVERY_S = 0.2
_LINE_EVERY_S = 1.0


class TrainingProgress:
    """Shows loss, the score that decides, norm deviation, speed and time left; silent off rank 0.

    Args:
        steps: the step at which training ends.
        start: the step that it goes on from.
        shown: whether this rank shows anything.
        goal_key: the score that decides, such as "validation/r2"; while it has no value, "train/r2" is shown.
        stream: where; standard output when not given.
    """

    def __init__(self, steps: int, start: int, shown: bool, goal_key: str, stream: TextIO | None = None) -> None:
        self.steps = steps
        self._shown = shown
        self._stream = stream or sys.stdout
        self._goal_key = goal_key
        self._column = goal_key.rpartition("/")[2]
        name = self._column.upper() if len(self._column) == 2 else self._column  # r2 is written R2
        # "validation R2": which data it is of; of the training data while that part has no value.
        self._names = {part: f"{part} {name}".strip() for part in (goal_key.rpartition("/")[0], "train")}
        self._score = next(iter(self._names.values()))
        self._values = dict.fromkeys(("loss", "score", "deviation", "steps/s"), "-")
        self._last_shown_s = 0.0
        self._step = start
        self._bar = _make_bar(self._stream) if shown and self._stream.isatty() else None
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task("train", total=steps, completed=start, values=self._short_text())

    def tick(self, step: int) -> None:
        """Move the bar to `step`, if there is a bar; it is drawn a few times a second only."""
        if self._bar is None:
            return
        self._step = step
        now = time.monotonic()
        if now - self._last_shown_s >= _BAR_EVERY_S:
            self._last_shown_s = now
            self._bar.update(self._task, completed=step, values=self._short_text())

    def show(self, row: Mapping[str, float | int | None]) -> None:
        """Show the newest logged row."""
        if not self._shown:
            return
        self._values.update(self._shown_of(row))
        step = int(row[STEP] or 0)
        if self._bar is not None:
            return
        now = time.monotonic()
        if now - self._last_shown_s >= _LINE_EVERY_S or step >= self.steps:
            self._last_shown_s = now
            width = len(str(self.steps))
            print(f"step {step:{width}d}/{self.steps}  {self._text()}", file=self._stream, flush=True)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.update(self._task, completed=self._step, values=self._short_text())
            self._bar.stop()
            self._bar = None

    def _text(self) -> str:
        labels = {"score": self._score}
        return "  ".join(f"{labels.get(label, label)} {value:>9}" for label, value in self._values.items())

    def _short_text(self) -> str:
        """The same beside a bar: a terminal of 80 columns must have room for the step and the time left."""
        loss, score, deviation, speed = self._values.values()
        return f"loss {loss} {self._score} {score} dev {deviation} {speed}/s"

    def _shown_of(self, row: Mapping[str, float | int | None]) -> dict[str, str]:
        """Label -> text of those numbers that `row` has; of several networks the largest deviation."""
        deviations = [v for k, v in row.items() if k.endswith("/norm_deviation") and v is not None]
        score, part = row.get(self._goal_key), self._goal_key.rpartition("/")[0]
        if score is None:
            score, part = row.get(f"train/{self._column}"), "train"
        if score is not None:
            self._score = self._names[part]
        found = {
            "loss": row.get("train/loss"),
            "score": score,
            "deviation": max(deviations, default=None),
            "steps/s": row.get("time/steps_per_s"),
        }
        return {label: f"{value:.4g}" for label, value in found.items() if value is not None}


def _make_bar(stream: TextIO) -> "Progress":
    # Here, because a run without a terminal need not load it.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    # Few refreshes: the bar's thread holds the interpreter while it draws, and a step can take 1 ms.
    return Progress(
        BarColumn(bar_width=6),
        MofNCompleteColumn(),
        TextColumn("{task.fields[values]}"),
        TimeRemainingColumn(),
        console=Console(file=stream, soft_wrap=True, highlight=False),
        refresh_per_second=2,
    )
