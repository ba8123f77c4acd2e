"""What a comparison of arms says: the numbers of each arm, the differences, and one sentence."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from distsam.report.statistics import Difference, Mean, corrected, difference_of, mean_of
from distsam.runs.folder import RunFolder
from distsam.runs.rows import STEP, read_rows
from distsam.runs.summary import read_summary

SIGNIFICANCE = 0.05
_FEW_SEEDS = 4


def summarise(folder: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Content of compare.json.

    Args:
        folder: of the comparison.
        facts: goal, score, higher_is_better, budget, seeds and arms, with the folders of their runs; kept as they are.

    Returns:
        The facts; for every arm scores (by seed), mean and interval of the score, and, as means over the seeds, step_s
        (seconds a step), target_s (seconds until the goal of the first arm was reached; None where no seed did),
        reached (seeds that did), deviation (norm deviation after the last step), paths; differences to the first arm;
        verdict.
    """
    runs = {
        name: {seed: _Run(folder / path, facts) for seed, path in arm["runs"].items()}
        for name, arm in facts["arms"].items()
    }
    first = next(iter(runs))
    target = _known_mean([run.goal for run in runs[first].values()])
    arms = {name: {**arm, **_arm(runs[name], target)} for name, arm in facts["arms"].items()}
    differences = _differences({name: list(arm["scores"].values()) for name, arm in arms.items()})
    result = {**facts, "target": target, "reference": first, "arms": arms, "differences": differences}
    result["notes"] = list(_notes(runs, facts))
    result["verdict"] = verdict(result)
    return result


class _Run:
    """The numbers of one run that are compared; nan where there are none."""

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        files = RunFolder(folder)
        summary = read_summary(files.summary)
        numbers = {} if summary is None else summary.numbers
        self.score, self.goal = _number(numbers.get(facts["score"])), _number(numbers.get(facts["goal"]["key"]))
        self.deviation = _deviation(numbers)
        self.data = None if summary is None else summary.more.get("data_sha256")
        self.rows = read_rows(files.metrics) if files.metrics.exists() else []
        speeds = [row["time/steps_per_s"] for row in self.rows if row.get("time/steps_per_s")]
        # The median: a row during which the machine did something else does not count.
        self.step_s = 1 / median(speeds) if speeds else math.nan
        self._key, self._is_higher_better = facts["goal"]["key"], facts["goal"]["higher_is_better"]

    def seconds_to(self, target: float) -> float:
        """Training time until the goal was as good as `target`; nan where it never was."""
        for row in self.rows:
            value = _number(row.get(self._key))
            if value >= target if self._is_higher_better else value <= target:
                return _number(row.get("time/elapsed_s"))
        return math.nan

    def path(self) -> tuple[list[int], list[float | None]]:
        """Steps, and the norm deviation at each."""
        known = [(row[STEP], _deviation(row)) for row in self.rows]
        return [s for s, _ in known], [None if math.isnan(q) else q for _, q in known]


def verdict(result: Mapping[str, Any]) -> str:
    """The one sentence: which arms differ from the first beyond chance, and by how much."""
    score, first, seeds = result["score"], result["reference"], len(result["seeds"])
    if seeds < 2:
        means = ", ".join(f"{name} {arm['mean']:.4g}" for name, arm in result["arms"].items())
        return f"One seed says nothing of chance ({score}: {means}): give 2 seeds or more for intervals and a test."
    tested = [d for d in result["differences"] if d["p_corrected"] is not None]
    if not tested:
        return f"No arm has two runs with a {score}, so none can be compared with {first}."
    real = [d for d in tested if d["p_corrected"] < SIGNIFICANCE]
    number = f"{seeds} seeds, {len(tested)} {'comparison' if len(tested) == 1 else 'comparisons'}"
    if not real:
        least = min(d["p_corrected"] for d in tested)
        number = f"{number}, least corrected p {least:.2g}"
        return f"No difference: no arm differs from {first} in {score} beyond chance ({number})."
    better_is = 1 if result["goal"]["higher_is_better"] else -1
    parts = [
        f"{d['arm']} is {'better' if d['mean'] * better_is > 0 else 'worse'} than {first} by {abs(d['mean']):.3g} "
        f"({d['interval'][0]:.3g} to {d['interval'][1]:.3g}, corrected p {d['p_corrected']:.2g})"
        for d in real
    ]
    rest = [d["arm"] for d in tested if d not in real]
    others = f"; {', '.join(rest)}: no difference beyond chance" if rest else ""
    return f"In {score}, {'; '.join(parts)}{others} ({number})."


def _arm(runs: Mapping[str, _Run], target: float) -> dict[str, Any]:
    scores = mean_of([run.score for run in runs.values()])
    times = [run.seconds_to(target) for run in runs.values()]
    reached = [time for time in times if not math.isnan(time)]
    steps, _ = max((run.path() for run in runs.values()), key=lambda path: len(path[0]))
    return {
        "scores": {seed: run.score for seed, run in runs.items()},
        "mean": scores.value,
        "interval": _interval(scores),
        "step_s": _known_mean([run.step_s for run in runs.values()]),
        "target_s": fmean(reached) if reached else None,
        "reached": len(reached),
        "deviation": _known_mean([run.deviation for run in runs.values()]),
        "paths": {"steps": steps, "deviation": {seed: _along(run, steps) for seed, run in runs.items()}},
    }


def _along(run: _Run, steps: Sequence[int]) -> list[float | None]:
    """The run's norm deviation at these steps."""
    known = dict(zip(*run.path(), strict=True))
    return [known.get(step) for step in steps]


def _differences(scores: Mapping[str, list[float]]) -> list[dict[str, Any]]:
    first, *others = scores
    found: list[Difference] = [difference_of(scores[name], scores[first]) for name in others]
    adjusted = corrected([difference.p for difference in found])
    return [
        {
            "arm": name,
            "against": first,
            "mean": d.mean.value,
            "interval": _interval(d.mean),
            "p": d.p,
            "p_corrected": p,
            "num_pairs": d.num_pairs,
        }
        for name, d, p in zip(others, found, adjusted, strict=True)
    ]


def _notes(runs: Mapping[str, Mapping[str, _Run]], facts: Mapping[str, Any]) -> Any:
    """One line for each thing that a reader of the numbers must know."""
    for name, of_arm in runs.items():
        lost = [seed for seed, run in of_arm.items() if math.isnan(run.score)]
        if lost:
            yield f"{name}: no {facts['score']} for seed {', '.join(lost)} (diverged, or the run is damaged); left out"
    for seed in map(str, facts["seeds"]):
        digests = {run.data for run in (of_arm[seed] for of_arm in runs.values()) if run.data is not None}
        if len(digests) > 1:
            yield f"seed {seed}: the arms were trained on different data or splits, and cannot be compared"
    untuned = [name for name, arm in facts["arms"].items() if not arm["tuned"]]
    if untuned and len(untuned) < len(runs):
        yield f"{', '.join(untuned)}: taken as it is, nothing is tuned"
    if 2 <= len(facts["seeds"]) < _FEW_SEEDS:
        yield f"{len(facts['seeds'])} seeds are few: such a test sees large and regular differences alone; 5 see more"
    deviations = {name: _known_mean([run.deviation for run in of_arm.values()]) for name, of_arm in runs.items()}
    known = {name: value for name, value in deviations.items() if not math.isnan(value)}
    if len(known) > 1 and max(known.values()) > 2 * min(known.values()):
        low, high = min(known, key=known.__getitem__), max(known, key=known.__getitem__)
        yield f"the norm deviation ends between {known[low]:.3g} ({low}) and {known[high]:.3g} ({high})"
    if facts["score"] == facts["goal"]["key"] and any(arm["tuned"] for arm in facts["arms"].values()):
        yield f"{facts['score']} also chose the weights of every run: it flatters all arms, the tuned ones most"


def _deviation(numbers: Mapping[str, Any]) -> float:
    """The norm deviation; of several networks the largest."""
    known = [_number(v) for k, v in numbers.items() if k.startswith("balance/") and k.endswith("/norm_deviation")]
    return max((value for value in known if not math.isnan(value)), default=math.nan)


def _interval(mean: Mean) -> list[float] | None:
    return None if mean.low is None or mean.high is None else [mean.low, mean.high]


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan


def _known_mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return fmean(known) if known else math.nan
