"""Rows of a run as series over the steps, and which of their keys are scores, networks and cores."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from distsam.runs.numbers import is_finite
from distsam.runs.rows import STEP
from distsam.runs.summary import SavedGoal

_BALANCE = "balance/"
_CORE = "/core_norm_sq/"
_DEVIATION = "/norm_deviation"
_NO_SCORES = ("balance", "time", "sam", "last")

Rows = Sequence[Mapping[str, Any]]


def series(rows: Rows, key: str) -> tuple[list[int], list[float]]:
    """(steps, values) of the rows that have a finite number for `key`."""
    points = [(row[STEP], row[key]) for row in rows if is_finite(row.get(key))]
    return [step for step, _ in points], [value for _, value in points]


def keys_of(rows: Rows) -> list[str]:
    """Every key that some row has, in the order in which they first come."""
    return list(dict.fromkeys(key for row in rows for key in row))


def networks_of(rows: Rows) -> list[str]:
    """The networks that have a norm deviation."""
    return [
        key.removeprefix(_BALANCE).removesuffix(_DEVIATION)
        for key in keys_of(rows)
        if key.startswith(_BALANCE) and key.endswith(_DEVIATION) and series(rows, key)[1]
    ]


def deviation_of(rows: Rows, network: str) -> tuple[list[int], list[float]]:
    """The norm deviation of `network` over the steps."""
    return series(rows, f"{_BALANCE}{network}{_DEVIATION}")


def cores_of(rows: Rows) -> dict[str, list[str]]:
    """Network -> names of its cores, both in the order of the rows."""
    found: dict[str, list[str]] = {}
    for key in keys_of(rows):
        network, is_core, core = key.removeprefix(_BALANCE).partition(_CORE)
        if key.startswith(_BALANCE) and is_core:
            found.setdefault(network, []).append(core)
    return found


def core_norms_of(rows: Rows, network: str, core: str) -> tuple[list[int], list[float]]:
    """The norm (not its square) of a core over the steps."""
    steps, squares = series(rows, f"{_BALANCE}{network}{_CORE}{core}")
    return steps, [max(square, 0.0) ** 0.5 for square in squares]


def score_column(rows: Rows, goal: SavedGoal | None) -> str:
    """The score to draw: the goal's; of a run without a summary the one of the most parts, the first of several."""
    if goal is not None:
        return goal.column
    counts = Counter(key.partition("/")[2] for key in keys_of(rows) if _may_be_score(key))
    return max(counts, key=counts.__getitem__, default="")


def _may_be_score(key: str) -> bool:
    return key.count("/") == 1 and key.partition("/")[0] not in _NO_SCORES and key not in (STEP, "train/loss")
