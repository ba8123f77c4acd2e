"""The one sentence and the one number that a report opens with."""

from collections.abc import Mapping, Sequence
from typing import Any

from distsam.report.formatting import shown

Tree = Mapping[str, Any]

_ROUNDING = 1e-9


def headline_of(run: Tree) -> dict[str, Any]:
    """The number that is watched, the norm deviation at the end, with where it began, and the goal's score.

    Args:
        run: a run's tree of the page data.

    Returns:
        "network" (the one with the largest deviation at the end), "deviation", "first_deviation", "label" and "score".
    """
    ends = {name: _ends(run, name) for name in run["networks"]}
    network = max(ends, key=lambda name: ends[name][1], default=None)
    first, last = ends[network] if network is not None else (None, None)
    label, score = _score(run)
    return {"network": network, "first_deviation": first, "deviation": last, "label": label, "score": score}


def sentence_of(runs: Sequence[Tree]) -> str:
    """What happened, in one sentence."""
    if not runs:
        return "Nothing was found to report."
    if len(runs) == 1:
        return _sentence_of_one(runs[0])
    scored = [run for run in runs if run["headline"]["score"] is not None]
    measured = [run for run in runs if run["headline"]["deviation"] is not None]
    best = least = None
    if scored and len({run["headline"]["label"] for run in scored}) == 1:
        first = max if scored[0]["higher_is_better"] is not False else min
        best = first(scored, key=lambda run: run["headline"]["score"])
    if measured:
        least = min(measured, key=lambda run: run["headline"]["deviation"])
    found = [
        (run, f"the {what} ({shown(run['headline'][key])})")
        for run, what, key in (
            (best, best and f"best {best['headline']['label']}", "score"),
            (least, "smallest norm deviation", "deviation"),
        )
        if run is not None
    ]
    return f"Of {len(runs)} runs, {_joined(found)}." if found else f"{len(runs)} runs, none with scores yet."


def _joined(found: Sequence[tuple[Tree, str]]) -> str:
    """Who has what, each run named once."""
    if len(found) == 2 and found[0][0] is found[1][0]:
        return f"{found[0][0]['name']} has both {found[0][1]} and {found[1][1]}"
    return " and ".join(f"{run['name']} has {what}" for run, what in found)


def _sentence_of_one(run: Tree) -> str:
    head = run["headline"]
    method = " on ".join(str(word) for word in (run["method"], run["base"]) if word) or run["name"]
    when = f"{'after' if run['state'] != 'running' else 'so far, at'} step {run['last_step']}"
    parts = []
    if head["score"] is not None:
        parts.append(f"{head['label']} is {shown(head['score'])}")
    if head["deviation"] is not None:
        parts.append(f"the norm deviation {_moved(head['first_deviation'], head['deviation'])}")
    return f"{method}, {when}: {' and '.join(parts) or 'nothing was logged yet'}."


def _moved(first: float, last: float) -> str:
    if first == last:
        return f"stayed at {shown(last)}"
    if first < _ROUNDING * last:  # a start of equal norms: what it rises from is rounding
        return f"is {shown(last)}"
    return f"{'fell' if last < first else 'rose'} from {shown(first)} to {shown(last)}"


def _ends(run: Tree, network: str) -> tuple[float, float]:
    values = run["series"][f"balance/{network}/norm_deviation"]["values"]
    return values[0], values[-1]


def _score(run: Tree) -> tuple[str | None, float | None]:
    """The first score that the goal shows by itself; of a run without a summary the last one of the last part."""
    numbers = run["numbers"]
    for label, key in run["headlines"]:
        if numbers.get(key) is not None:
            return label, numbers[key]
    keys = [run["goal"]] if run["goal"] else [f"{part}/{run['column']}" for part in reversed(run["parts"])]
    return next(((key, numbers[key]) for key in keys if numbers.get(key) is not None), (None, None))
