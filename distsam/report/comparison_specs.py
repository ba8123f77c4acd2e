"""What a report shows of a comparison: from the content of a compare.json to a table and two figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distsam.report.formatting import DASH, shown, text_shown
from distsam.runs.numbers import is_finite

Content = Mapping[str, Any]


@dataclass(frozen=True)
class Dots:
    """Differences, a row each: mean and 95 % interval (None where it cannot be computed)."""

    key: str
    title: str
    unit: str
    names: Sequence[str]
    means: Sequence[float | None]
    intervals: Sequence[tuple[float, float] | None]
    says: str = ""


@dataclass(frozen=True)
class Band:
    """One arm over the steps: median of its seeds, between the lowest and the highest."""

    label: str
    steps: Sequence[int]
    lowest: Sequence[float]
    middle: Sequence[float]
    highest: Sequence[float]


@dataclass(frozen=True)
class Bands:
    """The arms in one frame."""

    key: str
    title: str
    unit: str
    bands: Sequence[Band]
    says: str = ""


@dataclass(frozen=True)
class Table:
    """Texts: one header, any number of rows."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def arms_table(content: Content) -> Table:
    """Mean, interval, cost, time to the target and final norm deviation of every arm.

    Args:
        content: of a compare.json; what an arm lacks is a dash.
    """
    seeds = content.get("seeds") or []
    goal = _score(content)
    costs = ["seconds a step", "seconds to target", "reached it"]
    header = ["arm", f"{goal}, mean", "95 % interval", *costs, "norm deviation", "tuned"]
    rows = []
    for name, arm in _arms(content):
        tuned = ", ".join(f"{key}={shown(value) if is_finite(value) else text_shown(value)}"
                          for key, value in _mapping(arm.get("tuned")).items())  # fmt: skip
        reached = f"{arm.get('reached')} of {len(seeds)}" if is_finite(arm.get("reached")) else DASH
        rows.append([
            name, shown(arm.get("mean")), _interval_text(arm.get("interval")), shown(arm.get("step_s")),
            shown(arm.get("target_s")), reached, shown(arm.get("deviation")), tuned or DASH,
        ])  # fmt: skip
    return Table(header, rows)


def _score(content: Content) -> str:
    """What was compared, such as heldout/r2; the goal, by which the arms were tuned, has the same direction."""
    return str(content.get("score") or _mapping(content.get("goal")).get("key", "goal"))


def differences_table(content: Content) -> Table:
    """Every paired difference with its interval and probabilities."""
    rows = [
        [
            str(d.get("arm")),
            str(d.get("against")),
            shown(d.get("mean")),
            _interval_text(d.get("interval")),
            shown(d.get("p")),
            shown(d.get("p_corrected")),
        ]
        for d in _differences(content)
    ]
    return Table(["arm", "against", "difference", "95 % interval", "p", "p, corrected"], rows)


def best_difference(content: Content) -> dict[str, str] | None:
    """The number of a comparison: the paired difference of the arm that does best against the base."""
    found = [(mean, d) for d in _differences(content) if (mean := _number(d.get("mean"))) is not None]
    if not found:
        return None
    goal = _mapping(content.get("goal"))
    choose = max if goal.get("higher_is_better", True) else min
    mean, difference = choose(found, key=lambda pair: pair[0])
    interval, p = _interval_text(difference.get("interval")), shown(difference.get("p_corrected"))
    return {
        "value": f"{'+' if mean > 0 else ''}{shown(mean)}",
        "what": f"{_score(content)}, {difference.get('arm')} minus {difference.get('against')}: the best arm",
        "note": f"95 % interval {interval}; p, corrected: {p}",
    }


def differences_figure(content: Content) -> Dots:
    """Paired differences to the base arm as dots with intervals."""
    found = _differences(content)
    goal = _mapping(content.get("goal"))
    better = "right of 0 is better" if goal.get("higher_is_better", True) else "left of 0 is better"
    return Dots(
        "differences",
        f"Paired differences{_against(found)}",
        f"difference in {_score(content)} [unit as scored], {better}",
        [str(d.get("arm")) for d in found],
        [_number(d.get("mean")) for d in found],
        [_interval(d.get("interval")) for d in found],
        "Dots are means over the seeds, bars 95 % intervals; a bar across 0 is no difference that these seeds show.",
    )


def paths_figure(content: Content) -> Bands:
    """The norm deviation over the steps, an arm a band: median, lowest and highest of the seeds."""
    bands = [band for name, arm in _arms(content) if (band := _band(name, _mapping(arm.get("paths")))) is not None]
    return Bands(
        "paths",
        "Norm deviation of every arm",
        "Q [parameter unit⁴]",
        bands,
        "Lines are medians of the seeds, bands reach from the lowest to the highest.",
    )


def _band(name: str, paths: Content) -> Band | None:
    """Of the steps at which every seed has a number."""
    steps, seeds = paths.get("steps") or [], list(_mapping(paths.get("deviation")).values())
    points = []
    for position, step in enumerate(steps):
        values = [_number(path[position]) if position < len(path) else None for path in seeds]
        known = sorted(value for value in values if value is not None)
        if known and len(known) == len(values):
            points.append((step, known))
    if not points:
        return None
    return Band(
        name,
        [step for step, _ in points],
        [known[0] for _, known in points],
        [_median(known) for _, known in points],
        [known[-1] for _, known in points],
    )


def _median(ordered: Sequence[float]) -> float:
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def _against(differences: Sequence[Content]) -> str:
    bases = {str(d.get("against")) for d in differences}
    return f" to {bases.pop()}" if len(bases) == 1 else ""


def _arms(content: Content) -> list[tuple[str, Content]]:
    return [(str(name), _mapping(arm)) for name, arm in _mapping(content.get("arms")).items()]


def _differences(content: Content) -> list[Content]:
    found = content.get("differences")
    return [d for d in found if isinstance(d, Mapping)] if isinstance(found, list) else []


def _mapping(value: Any) -> Content:
    return value if isinstance(value, Mapping) else {}


def _number(value: Any) -> float | None:
    return float(value) if is_finite(value) else None


def _interval(value: Any) -> tuple[float, float] | None:
    is_pair = isinstance(value, Sequence) and len(value) == 2 and all(is_finite(end) for end in value)
    return (float(value[0]), float(value[1])) if is_pair else None


def _interval_text(value: Any) -> str:
    found = _interval(value)
    return DASH if found is None else f"{shown(found[0])} to {shown(found[1])}"
