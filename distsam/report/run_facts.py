"""What a run folder holds, read once: rows, summary and config, and in words what is missing or damaged."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distsam.errors import InputError
from distsam.report.series import Rows
from distsam.runs.folder import RunFolder
from distsam.runs.lock import holder_of
from distsam.runs.numbers import is_finite
from distsam.runs.rows import STEP, read_rows_and_damage
from distsam.runs.study import StudyFolder, of_a_study
from distsam.runs.summary import Summary, read_summary

ReadConfig = Callable[[Path], dict[str, Any]]
COMPARISON = "compare.json"


@dataclass(frozen=True)
class RunFacts:
    """One run as its folder tells it.

    Attributes:
        name: short, and of several runs different from the others'.
        path: the folder, as given.
        state: "running", "ended" (with a summary of its last row), or "unfinished" (killed, or its summary is gone).
        rows: of metrics.jsonl; empty where there are none.
        summary: None where there is none that can be read.
        config: sections of config.yaml; empty where it cannot be read.
        missing: a sentence each for what is not there or damaged.
    """

    name: str
    path: Path
    state: str
    rows: Rows
    summary: Summary | None
    config: Mapping[str, Any]
    missing: tuple[str, ...]

    @property
    def last_step(self) -> int:
        """Step of the last row; without rows that of the summary, or 0."""
        if self.rows:
            return max(int(row[STEP]) for row in self.rows)
        return 0 if self.summary is None else self.summary.steps

    def setting(self, section: str, name: str) -> Any:
        """A value of the config; None where it is not there."""
        found = self.config.get(section)
        return found.get(name) if isinstance(found, Mapping) else None


def read_runs(paths: Sequence[Path], read_config: ReadConfig) -> list[RunFacts]:
    """The facts of the runs in `paths`, in order.

    Args:
        paths: run folders; each is read even if it is damaged or its run goes on.
        read_config: gives the sections of a config.yaml; may raise InputError.

    Raises:
        InputError: a path is no folder of a run, or is given twice.
    """
    resolved = [path.resolve() for path in paths]
    for position, path in enumerate(paths):
        if not RunFolder(path).holds_run():
            if StudyFolder(path).is_study():
                raise InputError(f"{path}: {of_a_study(path)}")
            raise InputError(f"{path}: is no folder of a run; give one that distsam train has written")
        if resolved[position] in resolved[:position]:
            raise InputError(f"{path}: is given twice; give every run once")
    return [_read(path, name, read_config) for path, name in zip(paths, _short_names(resolved), strict=True)]


def _read(path: Path, name: str, read_config: ReadConfig) -> RunFacts:
    folder, missing = RunFolder(path), list[str]()
    rows = _rows(folder, missing)
    running = _lives(folder.lock)
    if not running and rows and rows[-1].get("train/loss") is None and rows[-1][STEP] > 0:
        missing.append(
            f"the row of step {rows[-1][STEP]} has no training loss: the step was skipped or its loss infinite"
        )
    summary = _summary(folder, running, missing)
    config: dict[str, Any] = {}
    try:
        config = read_config(folder.config)
    except InputError as error:
        missing.append(f"config.yaml cannot be read, so no settings are shown ({error})")
    last = max((row[STEP] for row in rows), default=None)
    if summary is not None and last is not None and summary.steps < last:
        missing.append(
            f"summary.json is of step {summary.steps}, an earlier end of this run; the rows go to step {last}"
        )
        summary = None
    state = "running" if running else "unfinished" if summary is None else "ended"
    return RunFacts(name, path, state, rows, summary, config, tuple(missing))


def _rows(folder: RunFolder, missing: list[str]) -> list[dict[str, Any]]:
    try:
        rows, num_damaged = read_rows_and_damage(folder.metrics)
    except (InputError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no such file"
        missing.append(f"metrics.jsonl cannot be read ({reason}), so no curves are shown")
        return []
    # The last line of a run that goes on may be half written.
    if num_damaged and not (num_damaged == 1 and _lives(folder.lock)):
        missing.append(f"{num_damaged} damaged line{'s' * (num_damaged > 1)} of metrics.jsonl left out")
    if not rows:
        missing.append("metrics.jsonl holds no rows, so no curves are shown")
    return rows


def _summary(folder: RunFolder, running: bool, missing: list[str]) -> Summary | None:
    summary = read_summary(folder.summary)
    if summary is not None and not (isinstance(summary.steps, int) and is_finite(summary.wall_s)):
        summary = None
    if summary is None and folder.summary.exists():
        missing.append("summary.json is damaged; the numbers are those of the last row")
    elif summary is None and not running:
        missing.append("no summary.json: the run did not reach its end; the numbers are those of the last row")
    return summary


def _short_names(paths: Sequence[Path]) -> list[str]:
    """The last part of each path, with as many before it as it takes to tell them apart."""
    for count in range(1, max((len(path.parts) for path in paths), default=1) + 1):
        names = ["/".join(path.parts[-count:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _lives(lock: Path) -> bool:
    """Whether a run holds the lock."""
    holder = holder_of(lock)
    return holder is not None and holder.lives
