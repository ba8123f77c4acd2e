"""What mattered in a search: every setting's score over each key, and the share of each key in it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distsam.report.axes import colours, figure_of, save_figure

_OUTSIDE = 0.2


def plot_search(result: Mapping[str, Any], target: Path) -> None:
    """Draw the search as PNG: a panel a key, a point a setting, larger where it went further; the best is ringed.

    Args:
        result: content of tune.json.
        target: file to write.
    """
    trials = [trial for trial in result["trials"] if trial["values"] and trial["goal"] is not None]
    keys = list(result["spaces"])
    figure, panels = figure_of(f"{len(result['trials'])} settings in {result['minutes']:.1f} minutes", len(keys))
    for axis, key in zip(panels, keys, strict=True):
        _draw_key(axis, key, trials, result)
    if trials:
        panels[0].legend(fontsize="small")
    save_figure(figure, target)


def _draw_key(axis: Any, key: str, trials: list[Any], result: Mapping[str, Any]) -> None:
    space, goal = result["spaces"][key], result["goal"]["key"]
    rungs = sorted({trial["rung"] for trial in trials})
    for colour, rung in zip(colours(len(rungs)), rungs, strict=True):
        chosen = [trial for trial in trials if trial["rung"] == rung]
        points = [_place(space, trial["values"][key]) for trial in chosen]
        label = f"{result['steps'][rung]} steps"
        axis.scatter(points, [t["goal"] for t in chosen], s=18 * (1 + rung), color=colour, alpha=0.8, label=label)
    best = result["best"]
    if best["values"]:
        score = next(trial["goal"] for trial in result["trials"] if trial["index"] == best["index"])
        axis.scatter([_place(space, best["values"][key])], [score], s=160, facecolors="none", edgecolors="black")
    share = result["importances"].get(key)
    axis.set_title(key if share is None else f"{key}: {share:.0%} of what mattered", fontsize="medium")
    axis.set_ylabel(goal)
    axis.set_xlabel(key)
    if space["kind"].startswith("log"):
        axis.set_xscale("log")
    elif space["kind"] == "choice":
        axis.set_xticks(range(len(space["choices"])), [str(choice) for choice in space["choices"]])
        axis.set_xlim(-0.5, len(space["choices"]) - 0.5)
    _show_the_better(axis, [trial["goal"] for trial in trials], result["goal"]["higher_is_better"])


def _place(space: Mapping[str, Any], value: Any) -> float:
    return space["choices"].index(value) if space["kind"] == "choice" else value


def _show_the_better(axis: Any, scores: list[float], higher_is_better: bool) -> None:
    """Let a few settings that went wrong not press the others into one line: the worst fifth may lie outside."""
    known = sorted(scores, reverse=higher_is_better)
    if len(known) < 5:
        return
    best, worst = known[0], known[int((1 - _OUTSIDE) * (len(known) - 1))]
    margin = 0.1 * (best - worst)
    if margin:
        axis.set_ylim(*sorted((best + margin, worst - margin)))
