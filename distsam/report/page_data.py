"""All numbers of a report as one plain tree: what the page embeds as JSON, and what its figures are drawn from."""

from collections.abc import Mapping, Sequence
from typing import Any

from distsam.report.attribution import REST, attribute, law_of
from distsam.report.headline import headline_of, sentence_of
from distsam.report.run_facts import RunFacts
from distsam.report.series import Rows, cores_of, keys_of, networks_of, score_column, series
from distsam.runs.numbers import is_finite, without_infinities
from distsam.runs.rows import STEP
from distsam.runs.summary import score_parts

# So that a page of 500 cores stays a page: a browser draws and searches some 40,000 numbers at once.
_MAX_NUMBERS = 40_000
_MAX_POINTS, _MIN_POINTS = 400, 24
_LARGEST = 1e300
_SHARED = ("steps", "wall_s", "stopped_by", "weights", "best_step")
_ENVIRONMENT = ("device", "world_size", "num_parameters", "versions", "fingerprint", "data_sha256", "sharding")

Tree = dict[str, Any]


def page_data(runs: Sequence[RunFacts], comparison: Mapping[str, Any] | None = None) -> Tree:
    """The content of a report.

    Args:
        runs: what is shown, in order.
        comparison: content of a compare.json, taken over as it stands.

    Returns:
        "runs": a tree each, every number as it stands in the run's files, or computed from them where the key says so
        ("attribution", "headline"); "notes": what a reader must know first; "sentence"; "comparison".
    """
    trees = [_run(run) for run in runs]
    return {
        "sentence": str((comparison or {}).get("verdict") or sentence_of(trees)),
        "notes": [*_notes(runs), *map(str, (comparison or {}).get("notes") or [])],
        "runs": trees,
        "comparison": without_infinities(dict(comparison)) if comparison else None,
    }


def thinned(steps: Sequence[Any], limit: int) -> list[int]:
    """Positions of at most `limit` of the points, evenly spread, the first and the last among them."""
    count = len(steps)
    if count <= limit:
        return list(range(count))
    return sorted({round(i * (count - 1) / (limit - 1)) for i in range(limit)})


def _run(run: RunFacts) -> Tree:
    summary, goal = run.summary, None if run.summary is None else run.summary.goal
    column = score_column(run.rows, goal)
    keys = [key for key in keys_of(run.rows) if key != STEP]
    limit = max(_MIN_POINTS, min(_MAX_POINTS, _MAX_NUMBERS // max(1, len(keys))))
    tree: Tree = {
        "name": run.name,
        "path": str(run.path),
        "state": run.state,
        "missing": list(run.missing),
        "method": run.setting("optim", "method"),
        "base": run.setting("optim", "base"),
        "last_step": run.last_step,
        "planned_steps": run.setting("train", "steps"),
        "num_rows": len(run.rows),
        "max_points": limit,
        "column": column,
        "parts": score_parts(keys, [column]) if column else [],
        "higher_is_better": None if goal is None else goal.higher_is_better,
        "goal": None if goal is None else goal.key,
        "headlines": [] if goal is None else [list(pair) for pair in goal.headline],
        "cores": cores_of(run.rows),
        "networks": networks_of(run.rows),
        "config": run.config,
        "summary": None if summary is None else {name: getattr(summary, name) for name in _SHARED},
        "environment": {}
        if summary is None
        else {key: summary.more[key] for key in _ENVIRONMENT if key in summary.more},
        "memory": {} if summary is None else {key: value for key, value in summary.more.items() if "memory" in key},
        "numbers": _last_numbers(run.rows) if summary is None else dict(summary.numbers),
        "series": {key: points for key in keys if (points := _points(run.rows, key, limit))["steps"]},
        "attribution": {name: _attribution(run, name, limit) for name in networks_of(run.rows)},
        "collectives": _collectives(run),
    }
    tree["headline"] = headline_of(tree)
    return dict(without_infinities(tree))


def _points(rows: Rows, key: str, limit: int) -> Tree:
    steps, values = series(rows, key)
    # A number of any length is JSON, but none that can be drawn.
    small = [i for i, value in enumerate(values) if abs(value) < _LARGEST]
    chosen = [small[i] for i in thinned(small, limit)]
    return {"steps": [steps[i] for i in chosen], "values": [values[i] for i in chosen]}


def _last_numbers(rows: Rows) -> Tree:
    """The latest of every number that the rows hold: scores need not stand in the last one."""
    return {key: value for row in rows for key, value in row.items() if key != STEP and is_finite(value)}


def _attribution(run: RunFacts, network: str, limit: int) -> Tree:
    optim = run.config.get("optim")
    # Where the config says auto, the rows hold the number.
    numbers = {
        key.removeprefix("auto/"): value for row in run.rows for key, value in row.items() if key.startswith("auto/")
    }
    law = law_of({**(optim if isinstance(optim, Mapping) else {}), **numbers})
    found = attribute(run.rows, network, len(cores_of(run.rows).get(network, ())), law)
    chosen = thinned(found.steps, limit)
    terms: dict[str, list[float | None]] = {"measured": list(found.measured), **found.terms}
    means = {name: _mean(values) for name, values in terms.items()}
    return {
        "steps": [found.steps[i] for i in chosen],
        "terms": {name: [values[i] for i in chosen] for name, values in terms.items()},
        # What the terms add up to, where all that a step does has a law.
        "known": [_known(terms, i) for i in chosen] if law.is_plain and terms["measured"] else [],
        "means": means,
        "notes": list(found.notes),
    }


def _known(terms: Mapping[str, list[float | None]], position: int) -> float | None:
    measured, rest = terms["measured"][position], terms[REST][position]
    return None if measured is None or rest is None else measured - rest


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _collectives(run: RunFacts) -> Tree:
    """What a step sends beyond the passes' own traffic, by the rule that the method follows."""
    method = run.setting("optim", "method")
    if not isinstance(method, str):
        return {}
    law = law_of({"method": method})
    world = 1 if run.summary is None else run.summary.more.get("world_size", 1)
    per_step = 2 if law.ascends else 1
    num_cores = sum(map(len, cores_of(run.rows).values()))
    return {
        "passes": per_step,
        "small_all_reduces": per_step,
        "largest_bytes": 8 * (2 * num_cores + 3),
        "plan": run.setting("sharding", "plan"),
        "world_size": world,
        "sent": 0 if world == 1 else per_step,
    }


def _notes(runs: Sequence[RunFacts]) -> list[str]:
    notes = [
        f"{run.name}: {text}." if len(runs) > 1 else f"{text[0].upper()}{text[1:]}."
        for run in runs
        for text in run.missing
    ]
    for run in runs:
        if run.state == "running":
            notes.append(
                f"{run.name} is still training: step {run.last_step} of {run.setting('train', 'steps') or '?'}."
            )
    if len(runs) > 1:
        notes += _differences(runs)
    return notes


def _differences(runs: Sequence[RunFacts]) -> list[str]:
    notes = []
    digests = {run.name: _data_digest(run) for run in runs}
    if len(set(digests.values())) > 1:
        groups: dict[str, list[str]] = {}
        for name, digest in digests.items():
            groups.setdefault(digest, []).append(name)
        which = " | ".join(", ".join(names) for names in groups.values())
        notes.append(f"These runs are of different data, so their scores cannot be compared: {which}.")
    goals = {run.summary.goal.key for run in runs if run.summary is not None and run.summary.goal is not None}
    if len(goals) > 1:
        notes.append(f"These runs have different goals ({', '.join(sorted(goals))}).")
    notes.append(
        "Each curve is one run: a difference can be chance of seed or step size; that is what a comparison is for."
    )
    return notes


def _data_digest(run: RunFacts) -> str:
    """What tells data apart: their digest, or for a run without a summary the section that names them."""
    digest = None if run.summary is None else run.summary.more.get("data_sha256")
    return str(digest) if digest else f"config {run.config.get('data')}"
