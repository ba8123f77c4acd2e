"""What a person sees while it trains: a bar in a terminal, plain lines anywhere else."""

import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_BAR_EVERY_S = 0.2
_LINE_EVERY_S = 1.0
_LABELS = ("loss", "R2", "deviation", "steps/s")


class TrainingProgress:
    """Shows loss, R2 on the validation entries, norm deviation, speed and time left; silent off rank 0.

    Args:
        steps: the step at which training ends.
        start: the step that it goes on from.
        shown: whether this rank shows anything.
        console: where; standard output when not given.
    """

    def __init__(self, steps: int, start: int, shown: bool, console: Console | None = None) -> None:
        self.steps = steps
        self._console = console or Console(soft_wrap=True, highlight=False)
        self._shown = shown
        self._values = dict.fromkeys(_LABELS, "-")
        self._last_shown_s = 0.0
        self._bar = _make_bar(self._console) if shown and self._console.is_terminal else None
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task("train", total=steps, completed=start, values=self._short_text())

    def tick(self, step: int) -> None:
        """Move the bar to `step`; costs a clock reading when there is nothing to move."""
        if self._bar is None:
            return
        now = time.monotonic()
        if now - self._last_shown_s >= _BAR_EVERY_S:
            self._last_shown_s = now
            self._bar.update(self._task, completed=step, values=self._short_text())

    def show(self, row: Mapping[str, float | int | None]) -> None:
        """Take up the newest logged row."""
        if not self._shown:
            return
        self._values.update(_headline(row))
        step = int(row["train/step"] or 0)
        if self._bar is not None:
            return
        now = time.monotonic()
        if now - self._last_shown_s >= _LINE_EVERY_S or step >= self.steps:
            self._last_shown_s = now
            width = len(str(self.steps))
            self._console.print(f"step {step:{width}d}/{self.steps}  {self._text()}", markup=False)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.update(self._task, values=self._short_text())
            self._bar.stop()
            self._bar = None

    def _text(self) -> str:
        return "  ".join(f"{label} {value:>9}" for label, value in self._values.items())

    def _short_text(self) -> str:
        """The same beside a bar: a terminal of 80 columns must have room for the step and the time left."""
        loss, r2, deviation, speed = self._values.values()
        return f"loss {loss} R2 {r2} dev {deviation} {speed}/s"


def _make_bar(console: Console) -> Progress:
    # Few refreshes: the bar's thread holds the interpreter while it draws, and a step can take 1 ms.
    return Progress(
        BarColumn(bar_width=6),
        MofNCompleteColumn(),
        TextColumn("{task.fields[values]}"),
        TimeRemainingColumn(),
        console=console,
        refresh_per_second=2,
    )


def _headline(row: Mapping[str, float | int | None]) -> dict[str, str]:
    deviations = [v for k, v in row.items() if k.endswith("/norm_deviation") and v is not None]
    r2 = row.get("validation/r2")
    found = {
        "loss": row.get("train/loss"),
        "R2": row.get("train/r2") if r2 is None else r2,
        "deviation": max(deviations, default=None),
        "steps/s": row.get("time/steps_per_s"),
    }
    return {label: f"{value:.4g}" for label, value in found.items() if value is not None}
