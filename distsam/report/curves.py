"""The six pictures that say how a run went: loss, scores, errors, norm deviation, core norms, speed."""

from pathlib import Path
from typing import Any

from distsam.report.axes import (
    add_legend,
    colours,
    draw_line,
    mark_step,
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

_MOST_MISSED = 2.0


def draw_curves(run_dir: str | Path) -> Path:
    """Draw loss, the goal's score and RMSE on every part, norm deviation, core norms and speed over the steps into
    curves.png.

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
    figure, (loss, scores, errors, deviation, norms, speed) = new_figure(folder.path.absolute().name)
    _draw_loss(loss, rows)
    _draw_scores(
        scores, rows, None if summary is None else summary.goal, None if summary is None else summary.best_step
    )
    _draw_errors(errors, rows)
    _draw_deviation(deviation, rows)
    _draw_norms(norms, rows)
    _draw_speed(speed, rows)
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


def _draw_scores(axis: Any, rows: Rows, goal: SavedGoal | None, best_step: int | None) -> None:
    column = score_column(rows, goal)
    found = _parts(rows, column)
    is_r2 = column == "r2"
    for colour, (part, (steps, values)) in zip(colours(len(found)), found.items(), strict=True):
        shown = [min(1 - value, _MOST_MISSED) for value in values] if is_r2 else values
        draw_line(axis, (steps, shown), colour, f"{part} (last {'R² ' if is_r2 else ''}{values[-1]:.4g})")
    values = [value for _, part in found.values() for value in part]
    if is_r2:
        _scale_r2(axis, values)
    else:
        _scale_score(axis, values, column, goal)
    if best_step is not None and values:
        mark_step(axis, best_step)
    add_legend(axis, f"{len(found)} parts, dark to light in order")
    say_if_empty(axis, values)


def _parts(rows: Rows, column: str) -> dict[str, tuple[list[int], list[float]]]:
    """Part -> the course of its score `column`, where it has any."""
    found = {part: series(rows, f"{part}/{column}") for part in score_parts(keys_of(rows), [column])}
    return {part: points for part, points in found.items() if points[1]}


def _draw_errors(axis: Any, rows: Rows) -> None:
    found = _parts(rows, "rmse")
    for colour, (part, points) in zip(colours(len(found)), found.items(), strict=True):
        draw_line(axis, points, colour, f"{part} (last {points[1][-1]:.3g})")
    values = [value for _, part in found.values() for value in part]
    axis.set_title("RMSE on each part of the data")
    axis.set_ylabel("RMSE [unit of the data]")
    spread_scale(axis, values)
    add_legend(axis, f"{len(found)} parts, dark to light in order")
    say_if_empty(axis, values)


def _draw_speed(axis: Any, rows: Rows) -> None:
    found = series(rows, "time/steps_per_s")
    if found[1]:
        draw_line(axis, found, "black")
    axis.set_title("Speed")
    axis.set_ylabel("steps [1/s]")
    axis.set_ylim(bottom=0)
    say_if_empty(axis, found[1])


def _scale_r2(axis: Any, values: list[float]) -> None:
    """What R² misses of 1, over decades: 0.94 and 0.997 are far apart. What is far above 1 says only that it is."""
    axis.set_title("1 - centred R² on each part of the data (lower is better)")
    is_cut = any(1 - value > _MOST_MISSED for value in values)
    axis.set_ylabel("1 - R² [no unit]" + (f", cut off above {_MOST_MISSED:g}" if is_cut else ""))
    if any(value < 1 for value in values):
        axis.set_yscale("log")


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
