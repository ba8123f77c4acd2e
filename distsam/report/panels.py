"""Which panels show a run elsewhere, found from the keys of its rows."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distsam.report.series import cores_of, keys_of, networks_of, score_column, series
from distsam.runs.rows import STEP
from distsam.runs.summary import SavedGoal, score_parts

_RATES = ("measured_rate", "predicted_rate_exact", "predicted_rate")
_NETWORK = (
    ("norm deviation", "norm_deviation", True),
    ("relative deviation", "relative_deviation", True),
    ("largest over smallest core", "max_over_min", True),
    ("covariance of core norms and gradients", "covariance", False),
    ("alerts", "alerts", False),
)


@dataclass(frozen=True)
class PanelPlan:
    """Lines over the steps.

    Attributes:
        title: with its unit, if it has one.
        keys: of the rows, a line each.
        is_log: whether the axis of the values is logarithmic.
    """

    title: str
    keys: tuple[str, ...]
    is_log: bool = False


def planned_sections(rows: Sequence[Mapping[str, Any]], goal: SavedGoal | None) -> dict[str, list[PanelPlan]]:
    """Section -> its panels; every key of a panel has a finite number in some row.

    Args:
        rows: of a run.
        goal: by which its weights are chosen; without it the score that most parts have comes first.
    """
    found = {key for key in keys_of(rows) if key != STEP and series(rows, key)[1]}
    planned = {
        "Scores": list(_scores(rows, goal)),
        "Norm deviation": list(_balance(rows)),
        "Core norms": list(_core_norms(rows)),
        "Rates": list(_rates(rows)),
        "Steps": list(_steps()),
    }
    checked = {name: [_with_known(panel, found) for panel in panels] for name, panels in planned.items()}
    return {name: kept for name, panels in checked.items() if (kept := [panel for panel in panels if panel.keys])}


def _with_known(panel: PanelPlan, found: set[str]) -> PanelPlan:
    return PanelPlan(panel.title, tuple(key for key in panel.keys if key in found), panel.is_log)


def _scores(rows: Sequence[Mapping[str, Any]], goal: SavedGoal | None) -> Iterator[PanelPlan]:
    columns = goal.columns if goal is not None and goal.columns else (score_column(rows, goal),)
    for column in columns:
        parts = score_parts(keys_of(rows), [column])
        yield PanelPlan(column, tuple(f"{part}/{column}" for part in parts))
    yield PanelPlan("loss", ("train/loss",), is_log=True)


def _balance(rows: Sequence[Mapping[str, Any]]) -> Iterator[PanelPlan]:
    """A panel a number, a line a network."""
    for title, metric, is_log in _NETWORK:
        yield PanelPlan(title, tuple(f"balance/{network}/{metric}" for network in networks_of(rows)), is_log)


def _core_norms(rows: Sequence[Mapping[str, Any]]) -> Iterator[PanelPlan]:
    for network, cores in cores_of(rows).items():
        keys = tuple(f"balance/{network}/core_norm_sq/{core}" for core in cores)
        yield PanelPlan(f"squared core norms of {network}", keys, is_log=True)


def _rates(rows: Sequence[Mapping[str, Any]]) -> Iterator[PanelPlan]:
    for network in networks_of(rows):
        keys = tuple(f"balance/{network}/{rate}" for rate in _RATES)
        yield PanelPlan(f"rate of the norm deviation of {network}, per step and learning rate", keys)


def _steps() -> Iterator[PanelPlan]:
    yield PanelPlan("norm of the gradient", ("sam/grad_norm",), is_log=True)
    yield PanelPlan("loss gap of the perturbation", ("sam/loss_gap",))
    yield PanelPlan("skipped steps, clipped rescales", ("sam/skipped", "das/clipped"))
    yield PanelPlan("speed, steps per second", ("time/steps_per_s",))
