"""The tables of a report, from the page's data: results and settings side by side, and the numbers behind a figure."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from distsam.report.comparison_specs import Bands, Dots, Table
from distsam.report.figure_specs import Curve, Heat, Lines
from distsam.report.formatting import DASH, bytes_shown, shown, text_shown

Tree = Mapping[str, Any]


def results_table(runs: Sequence[Tree]) -> Table:
    """Scores and balance of every run, a column each."""
    labels = [run["name"] for run in runs]
    keys = dict.fromkeys(
        key for run in runs for key, value in run["numbers"].items() if _is_result(key) and value is not None
    )
    lines = [[_readable(key), *(shown(run["numbers"].get(key)) for run in runs)] for key in keys]
    about = {
        "state": [run["state"] for run in runs],
        "method": [" on ".join(str(word) for word in (run["method"], run["base"]) if word) or DASH for run in runs],
        "steps done": [shown(run["last_step"]) for run in runs],
        "ended by": [_of(run, "stopped_by") for run in runs],
        "scores are of": [_weights(run) for run in runs],
        "seconds": [shown((run["summary"] or {}).get("wall_s")) for run in runs],
    }
    return Table(["", *labels], [[name, *cells] for name, cells in about.items()] + lines)


def costs_table(runs: Sequence[Tree]) -> Table:
    """Speed, memory and collectives of every run, a column each."""
    lines = {
        "steps a second, median of the rows": [shown(_median_speed(run)) for run in runs],
        "peak memory of rank 0, main": [bytes_shown(run["memory"].get("peak_memory_bytes")) for run in runs],
        "peak memory of rank 0, device": [bytes_shown(run["memory"].get("peak_device_memory_bytes")) for run in runs],
        "ranks": [shown(run["collectives"].get("world_size")) for run in runs],
        "passes a step": [shown(run["collectives"].get("passes")) for run in runs],
        "small all-reduces a step beside the passes": [shown(run["collectives"].get("sent")) for run in runs],
        "the largest of them, bytes": [shown(run["collectives"].get("largest_bytes")) for run in runs],
        "plan": [text_shown(run["collectives"].get("plan")) for run in runs],
    }
    return Table(["", *(run["name"] for run in runs)], [[name, *cells] for name, cells in lines.items()])


def attribution_tables(runs: Sequence[Tree]) -> Iterator[tuple[str, Table, Sequence[str]]]:
    """(run and network, means of the parts of the rate over the logged steps, notes) where a rate was measured."""
    for run in runs:
        for network, parts in run["attribution"].items():
            if parts["steps"]:
                whole = parts["means"]["measured"]
                rows = [
                    [name, shown(mean), shown(100 * mean / whole, 3) + " %" if mean is not None and whole else DASH]
                    for name, mean in parts["means"].items()
                ]
                yield (
                    f"{run['name']}, {network}",
                    Table(["part", "mean over logged steps", "share"], rows),
                    parts["notes"],
                )


def settings_table(runs: Sequence[Tree]) -> Table:
    """Every key of the configs; those in which the runs differ first, marked."""
    flat = [dict(_flat(run["config"])) for run in runs]
    keys = dict.fromkeys(key for settings in flat for key in settings)
    rows = [[key, *(settings.get(key, DASH) for settings in flat)] for key in keys]
    differing = [[f"≠ {row[0]}", *row[1:]] for row in rows if len(set(row[1:])) > 1]
    same = [row for row in rows if len(set(row[1:])) <= 1]
    return Table(["", *(run["name"] for run in runs)], differing + same)


def environment_table(runs: Sequence[Tree]) -> Table:
    """Device, ranks, versions and digests of every run."""
    flat = [dict(_flat(run["environment"])) for run in runs]
    keys = dict.fromkeys(key for facts in flat for key in facts)
    return Table(
        ["", *(run["name"] for run in runs)], [[key, *(facts.get(key, DASH) for facts in flat)] for key in keys]
    )


def numbers_table(figure: Lines | Heat | Dots | Bands) -> Table:
    """The numbers that a figure shows, six digits each."""
    if isinstance(figure, Heat):
        return Table(["step", *figure.names], [
            [str(step), *(shown(row[column], 6) for row in figure.norms)] for column, step in enumerate(figure.steps)
        ])  # fmt: skip
    if isinstance(figure, Dots):
        return Table([], [])
    if isinstance(figure, Bands):
        curves = [
            Curve(f"{band.label}, {what}", band.steps, values)
            for band in figure.bands
            for what, values in (("lowest", band.lowest), ("median", band.middle), ("highest", band.highest))
        ]
    else:
        curves = list(figure.curves)
    columns = [dict(zip(curve.steps, curve.values, strict=True)) for curve in curves]
    steps = sorted({step for column in columns for step in column})
    rows = [[str(step), *(shown(column.get(step), 6) for column in columns)] for step in steps]
    return Table(["step", *(curve.label for curve in curves)], rows)


def _is_result(key: str) -> bool:
    return not key.startswith(("last/", "time/")) and "/core_norm_sq/" not in key


def _readable(key: str) -> str:
    """Scores keep their keys, by which other commands name them; those of the balance are words."""
    network, _, metric = key.removeprefix("balance/").rpartition("/")
    return f"{network}: {metric.replace('_', ' ')}" if key.startswith("balance/") else key


def _flat(tree: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", text_shown(value)


def _of(run: Tree, name: str) -> str:
    return DASH if run["summary"] is None else text_shown(run["summary"][name])


def _weights(run: Tree) -> str:
    summary = run["summary"]
    if summary is None:
        return "the last row"
    return f"best weights, step {summary['best_step']}" if summary["weights"] == "best" else "last weights"


def _median_speed(run: Tree) -> float | None:
    speeds = sorted(run["series"].get("time/steps_per_s", {"values": []})["values"])
    return speeds[len(speeds) // 2] if speeds else None
