"""The four pictures that say how a run went: loss, scores, norm deviation, core norms."""

from pathlib import Path
from typing import Any

from distsam.report.axes import (
    add_legend,
    colours,
    draw_line,
    new_figure,
    save_figure,
    say_if_empty,
    shades,
    spread_scale,
)
from distsam.report.series import (
    Rows,
    core_norms_of,
    cores_of,
    deviation_of,
    keys_of,
    networks_of,
    score_column,
    series,
)
from distsam.runs.folder import RunFolder
from distsam.runs.rows import read_rows
from distsam.runs.summary import SavedGoal, read_summary, score_parts

_LOWEST_R2 = -1.0


def draw_curves(run_dir: str | Path) -> Path:
    """Draw loss, the goal's score on every part, norm deviation and core norms over the steps into curves.png.

    Args:
        run_dir: run folder with a metrics.jsonl. What the goal is, its summary.json says; in the folder of a run that
            was killed the score is drawn that most parts have.

    Returns:
        The path of curves.png.

    Raises:
        InputError: there is no metrics.jsonl.
    """
    folder = RunFolder(Path(run_dir))
    rows = read_rows(folder.metrics)
    summary = read_summary(folder.summary)
    figure, (loss, scores, deviation, norms) = new_figure(folder.path.absolute().name)
    _draw_loss(loss, rows)
    _draw_scores(scores, rows, None if summary is None else summary.goal)
    _draw_deviation(deviation, rows)
    _draw_norms(norms, rows)
    save_figure(figure, folder.curves)
    return folder.curves


def _draw_loss(axis: Any, rows: Rows) -> None:
    found = series(rows, "train/loss")
    draw_line(axis, found, "black")
    axis.set_title("Training loss")
    axis.set_ylabel("loss [unit as learnt]")
    if found[1] and min(found[1]) > 0:
        axis.set_yscale("log")
    say_if_empty(axis, found[1])


def _draw_scores(axis: Any, rows: Rows, goal: SavedGoal | None) -> None:
    column = score_column(rows, goal)
    found = {part: series(rows, f"{part}/{column}") for part in score_parts(keys_of(rows), [column])}
    found = {part: points for part, points in found.items() if points[1]}
    for colour, (part, points) in zip(colours(len(found)), found.items(), strict=True):
        draw_line(axis, points, colour, f"{part} (last {points[1][-1]:.3g})")
    values = [value for _, part in found.values() for value in part]
    if column == "r2":
        _scale_r2(axis, values)
    else:
        _scale_score(axis, values, column, goal)
    add_legend(axis, f"{len(found)} parts, dark to light in order")
    say_if_empty(axis, values)


def _scale_r2(axis: Any, values: list[float]) -> None:
    """R2 has no lower bound: what is far below 0 says no more than that it is."""
    axis.set_title("Centred R² on each part of the data")
    is_cut = any(value < _LOWEST_R2 for value in values)
    axis.set_ylabel("R² [no unit]" + (f", cut off below {_LOWEST_R2:g}" if is_cut else ""))
    if values:
        axis.set_ylim(max(_LOWEST_R2, min(values) - 0.05), 1.02)


def _scale_score(axis: Any, values: list[float], column: str, goal: SavedGoal | None) -> None:
    """An error that falls over decades is read on a logarithmic scale; a score that rises towards a bound is not."""
    direction = "" if goal is None else f" ({'higher' if goal.higher_is_better else 'lower'} is better)"
    axis.set_title(f"Score: {column}{direction}" if column else "Scores")
    axis.set_ylabel(f"{column} [unit as scored]".strip())
    if goal is not None and not goal.higher_is_better and min(values, default=0) > 0:
        spread_scale(axis, values)


def _draw_deviation(axis: Any, rows: Rows) -> None:
    names = networks_of(rows)
    drawn: list[float] = []
    for colour, name in zip(colours(len(names)), names, strict=True):
        found = deviation_of(rows, name)
        draw_line(axis, found, colour, name)
        drawn += found[1]
    axis.set_title("Norm deviation Q = Σ (s_k - mean s)²")
    axis.set_ylabel("Q [parameter unit⁴]")
    spread_scale(axis, drawn)
    add_legend(axis, f"{len(names)} networks, dark to light in order")
    say_if_empty(axis, drawn)


def _draw_norms(axis: Any, rows: Rows) -> None:
    """Every core of one network has a colour; of several networks each has one, and its cores are shades of it."""
    networks = cores_of(rows)
    drawn: list[float] = []
    for colour, (network, cores) in zip(colours(len(networks)), networks.items(), strict=True):
        looks = [(c, "-") for c in colours(len(cores))] if len(networks) == 1 else shades(colour, len(cores))
        for core, (shade, dash) in zip(cores, looks, strict=True):
            found = core_norms_of(rows, network, core)
            draw_line(axis, found, shade, core if len(networks) == 1 else f"{network}, {core}", dash)
            drawn += found[1]
    axis.set_title("Core norms")
    axis.set_ylabel("‖G_k‖ [parameter unit]")
    spread_scale(axis, drawn)
    count = sum(map(len, networks.values()))
    of_networks = f" of {len(networks)} networks" if len(networks) > 1 else ""
    add_legend(axis, f"{count} cores{of_networks}, dark to light in order")
    say_if_empty(axis, drawn)
