"""Scores and what else a run came to, as text for people."""

from collections.abc import Iterator, Mapping, Sequence

from distsam.runs.rows import STEP
from distsam.runs.summary import Number, Summary, score_parts

_MAX_NAMED = 4


def score_table(scores: Mapping[str, Number], columns: Sequence[str] = ()) -> str:
    """One line a part ("heldout"), one column a score.

    Args:
        scores: "<part>/<column>" -> value; other keys are passed over.
        columns: which, in this order; those that are found, when empty.
    """
    columns = columns or list(dict.fromkeys(key.rpartition("/")[2] for key in scores if key != STEP))
    parts = score_parts(scores, columns)
    width = max([11, *map(len, parts)]) + 1
    lines = [" " * width + "".join(f"{name:>14}" for name in columns)]
    for part in parts:
        cells = "".join(f"{number(scores.get(f'{part}/{name}')):>14}" for name in columns)
        lines.append(f"{part:<{width}}{cells}")
    return "\n".join(lines)


def run_report(summary: Summary, run_dir: str) -> str:
    """The table of a run's scores and, line by line, what its user asks for first."""
    lines = [*_headline(summary), *_deviation(summary)]
    lines.append(("steps", f"{summary.steps}  (ended by {summary.stopped_by}, {summary.wall_s:.1f} s)"))
    lines.append(("run folder", run_dir))
    width = max([15, *(len(label) + 1 for label, _ in lines)])
    # Which of its numbers are scores, only the goal says.
    table = [] if summary.goal is None else ["", score_table(summary.numbers, summary.goal.columns), ""]
    return "\n".join([*table, *(f"{label:<{width}} {text}" for label, text in lines)])


def number(value: Number) -> str:
    """Four digits; a dash where there is no number."""
    return "-" if value is None else f"{value:.4g}"


def _headline(summary: Summary) -> Iterator[tuple[str, str]]:
    """The scores that the goal shows by themselves, or the one that decides; the first says of which weights."""
    goal = summary.goal
    if goal is None:
        return
    steps = summary.best_step
    known = {"best": f"best weights, step {steps}", "refit": f"fitted anew to all that is not held out, {steps} steps"}
    weights = known.get(summary.weights, "last weights")
    for position, (label, key) in enumerate(goal.headline or ((goal.key, goal.key),)):
        note = f"  ({weights})" if position == 0 else ""
        yield label, f"{number(summary.numbers.get(key))}{note}"


def _deviation(summary: Summary) -> Iterator[tuple[str, str]]:
    """The norm deviation of every network; of many, the largest."""
    ending = "/norm_deviation"
    found = {
        key.removeprefix("balance/").removesuffix(ending): value
        for key, value in summary.numbers.items()
        if key.startswith("balance/") and key.endswith(ending)
    }
    if not found:
        return
    if len(found) == 1:
        text = number(next(iter(found.values())))
    elif len(found) <= _MAX_NAMED:
        text = ", ".join(f"{name} {number(value)}" for name, value in found.items())
    else:
        known = {name: value for name, value in found.items() if value is not None}
        largest = max(known, key=known.__getitem__, default="none")
        text = f"{number(known.get(largest))} in {largest}, the largest of {len(found)} networks"
    yield "norm deviation", f"{text}  (last step)"
