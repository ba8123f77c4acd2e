"""How runs stand at this moment, from what they write into their folders, without disturbing them."""

import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from distsam.errors import InputError
from distsam.report.series import cores_of, score_column
from distsam.runs.about import About, read_about
from distsam.runs.checkpoints import finished_checkpoints, step_of
from distsam.runs.folder import RunFolder
from distsam.runs.lock import Holder, holder_of
from distsam.runs.numbers import is_finite
from distsam.runs.rows import STEP
from distsam.runs.study import StudyFolder, of_a_study
from distsam.runs.summary import Summary, read_summary, score_parts
from distsam.runs.tail import RowTail

State = Literal["starting", "training", "over", "dead", "gone"]
_KEPT = 512
_DEVIATION = "/norm_deviation"
# "How it moves" is the change over this part of the rows that are kept: one row alone may be noise.
_RECENT = 0.1


@dataclass(frozen=True)
class NetworkBalance:
    """The balance of one network.

    Attributes:
        network: its name.
        deviation: norm deviation, in parameter units to the fourth power; None where it is no finite number.
        change: of the deviation over the last tenth of the rows, relative; None where there is nothing to compare.
        history: the last deviations, a row each.
        core, share: the core of the largest squared norm, and its part of their sum, 0 to 1; None without norms.
    """

    network: str
    deviation: float | None
    change: float | None
    history: tuple[float, ...]
    core: str | None = None
    share: float | None = None


@dataclass(frozen=True)
class RunStatus:
    """How a run stands.

    Attributes:
        path: its folder.
        state: "dead" is a run without an end that no process is at work on; "gone" a folder that was removed.
        detail: who is at work, or why nobody is.
        step: of the last row; None without rows.
        steps: at which it ends; None where the folder does not say.
        steps_per_s: between the last two rows.
        left_s: seconds until its end, at that speed; None unless it trains.
        loss: of the last row.
        scores: "<part> <column>" -> value, the one that decides first.
        balance: of the network of the largest deviation; None without any.
        num_networks: that have a deviation.
        alerts: bounds that the networks are beyond now; None where none is watched.
        alert_step: where the last alert began, of the rows that were read.
        checkpoint: step of the last whole checkpoint.
        silent_s: seconds since the last row came.
    """

    path: Path
    state: State
    detail: str
    step: int | None = None
    steps: int | None = None
    steps_per_s: float | None = None
    left_s: float | None = None
    loss: float | None = None
    scores: tuple[tuple[str, float | None], ...] = ()
    balance: NetworkBalance | None = None
    num_networks: int = 0
    alerts: int | None = None
    alert_step: int | None = None
    checkpoint: int | None = None
    silent_s: float | None = None

    @property
    def is_live(self) -> bool:
        """Whether more may come."""
        return self.state in ("starting", "training")


class RunWatch:
    """Follows one run: `look` reads what has come since the last look.

    Args:
        path: the run folder.

    Raises:
        InputError: there is no such folder, or it is no run's.
    """

    def __init__(self, path: Path) -> None:
        self._folder = RunFolder(path)
        if not _is_folder(path):
            raise InputError(f"{path}: no such folder; give the folder of a run")
        if StudyFolder(path).is_study():
            raise InputError(f"{path}: {of_a_study(path)}")
        if not self._folder.is_run():
            raise InputError(
                f"{path}: is no run folder, it has no {self._folder.config.name}; give the folder of a run"
            )
        self._rows = RowTail(self._folder.metrics)
        self._forget()

    def _forget(self) -> None:
        self._latest: dict[str, Any] = {}
        self._deviations: dict[str, deque[float]] = {}
        self._alert_step: int | None = None

    @property
    def num_bytes(self) -> int:
        """Read of the rows until now."""
        return self._rows.num_bytes

    def look(self) -> RunStatus:
        """How the run stands."""
        folder = self._folder
        if not folder.is_run():
            return RunStatus(folder.path, "gone", "the folder was removed")
        # In this order: who has let go of the lock has written all rows before, and the summary.
        holder = holder_of(folder.lock)
        self._take_rows()
        about, state, detail = read_about(folder.about), *self._state(holder)
        step, speed = self._latest.get(STEP), _number(self._latest.get("time/steps_per_s"))
        if state == "training" and step is None:
            state = "starting"
        checkpoints = finished_checkpoints(folder.checkpoints)
        silent_s = _age_s(folder.metrics)
        return RunStatus(
            path=folder.path,
            state=state,
            detail=detail,
            step=step,
            steps=None if about is None else about.steps,
            steps_per_s=speed,
            left_s=_left_s(about, step, speed, silent_s) if state == "training" else None,
            loss=_number(self._latest.get("train/loss")),
            scores=tuple(self._scores(about)),
            balance=self._balance(max(self._deviations, key=self._size)) if self._deviations else None,
            num_networks=len(self._deviations),
            alerts=self._alerts_in(self._latest),
            alert_step=self._alert_step,
            checkpoint=step_of(checkpoints[-1]) if checkpoints else None,
            silent_s=silent_s,
        )

    def _state(self, holder: Holder | None) -> tuple[State, str]:
        summary = read_summary(self._folder.summary)
        if holder is not None:
            if holder.lives:
                return "training", holder.described
            return "dead", f"no process holds the lock: {holder.described} is gone"
        if summary is not None and not self._is_older(summary):
            return "over", f"ended by {summary.stopped_by}"
        return "dead", "no process holds the lock, and there is no summary: it failed or has not begun"

    def _is_older(self, summary: Summary) -> bool:
        """Whether the run went on after the summary was written."""
        step = self._latest.get(STEP)
        return step is not None and step > summary.steps

    def _take_rows(self) -> None:
        rows, all_before_are_void = self._rows.read()
        if all_before_are_void:
            self._forget()
        for row in rows:
            before, now = self._alerts_in(self._latest) or 0, self._alerts_in(row)
            if now is not None and now > before:
                self._alert_step = row[STEP]
            # A number that a row does not have is that of the row before; one that is null there is none by now.
            self._latest.update(row)
            for key, value in row.items():
                if key.startswith("balance/") and key.endswith(_DEVIATION):
                    network = key.removeprefix("balance/").removesuffix(_DEVIATION)
                    kept = self._deviations.setdefault(network, deque(maxlen=_KEPT))
                    if (number := _number(value)) is not None:
                        kept.append(number)

    def _scores(self, about: About | None) -> Iterable[tuple[str, float | None]]:
        goal = None if about is None else about.goal
        column = score_column([self._latest], goal)
        parts = score_parts(self._latest, [column])
        if goal is not None:
            parts.sort(key=lambda part: part != goal.key.rpartition("/")[0])
        for part in parts:
            yield f"{part} {column}", _number(self._latest[f"{part}/{column}"])

    def _size(self, network: str) -> float:
        deviation = _number(self._latest.get(f"balance/{network}{_DEVIATION}"))
        return -1.0 if deviation is None else deviation

    def _balance(self, network: str) -> NetworkBalance:
        prefix, history = f"balance/{network}", self._deviations[network]
        norms = {
            core: norm
            for core in cores_of([self._latest]).get(network, [])
            if (norm := _number(self._latest[f"{prefix}/core_norm_sq/{core}"])) is not None
        }
        total = sum(norms.values())
        core = max(norms, key=norms.__getitem__) if total > 0 else None
        return NetworkBalance(
            network=network,
            deviation=_number(self._latest.get(f"{prefix}{_DEVIATION}")),
            change=_change(history),
            history=tuple(history),
            core=core,
            share=None if core is None else norms[core] / total,
        )

    @staticmethod
    def _alerts_in(row: Mapping[str, Any]) -> int | None:
        found = [v for key, v in row.items() if key.startswith("balance/") and key.endswith("/alerts") and is_finite(v)]
        return int(sum(found)) if found else None


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a name that no folder can have
        return False


def _number(value: Any) -> float | None:
    """A finite number as a float; None for anything else that a damaged file may hold."""
    try:
        return float(value) if is_finite(value) else None
    except OverflowError:
        return None


def _change(history: deque[float]) -> float | None:
    if len(history) < 2:
        return None
    back = max(1, round(_RECENT * len(history)))
    before = next(islice(reversed(history), back, None))
    return history[-1] / before - 1 if before > 0 else None


def _left_s(about: About | None, step: int | None, speed: float | None, silent_s: float | None) -> float | None:
    if about is None or step is None or not speed:
        return None
    return max(0.0, (about.steps - step) / speed - (silent_s or 0.0))


def _age_s(file: Path) -> float | None:
    try:
        return max(0.0, time.time() - file.stat().st_mtime)
    except OSError:
        return None
