"""The four pictures that say how a run went, from its metrics.jsonl; core names are those of its summary.json."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from distsam.errors import InputError

_STEP = "train/step"
_R2_SHOWN = (-1.0, 1.0)
_SPLITS = {"train": "#1b9e77", "validation": "#d95f02", "heldout": "#7570b3"}
_MAX_NAMED = 10
_SPAN_SHOWN = 1e5
_ROOM_BELOW = 3

Rows = list[dict[str, Any]]
Names = dict[str, list[str]]


def draw_curves(run_dir: str | Path) -> Path:
    """Draw loss, R2 on the splits, norm deviation and core norms over the steps into curves.png.

    Args:
        run_dir: run folder with a metrics.jsonl; cores are numbered where it has no summary.json that names them.

    Returns:
        The path of curves.png.

    Raises:
        InputError: there is no metrics.jsonl.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = _read(Path(run_dir) / "metrics.jsonl")
    figure, axes = pyplot.subplots(2, 2, figsize=(12, 8), sharex=True, layout="constrained")
    draw_norms = partial(_draw_norms, names=_core_names(Path(run_dir) / "summary.json"))
    draw: tuple[Callable[[Any, Rows], None], ...] = (_draw_loss, _draw_r2, _draw_deviation, draw_norms)
    for axis, panel in zip(axes.flat, draw, strict=True):
        panel(axis, rows)
        axis.set_xlabel("step [updates]")
        axis.tick_params(labelbottom=True)
        axis.grid(True, alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(Path(run_dir).absolute().name)
    target = Path(run_dir) / "curves.png"
    part = target.with_name(".curves.tmp.png")
    figure.savefig(part, dpi=120)
    pyplot.close(figure)
    part.replace(target)
    return target


def _draw_loss(axis: Any, rows: Rows) -> None:
    steps, values = _series(rows, "train/loss")
    axis.plot(steps, values, color="black", linewidth=1.4)
    axis.set_title("Training loss")
    axis.set_ylabel("loss [squared error, scale as learnt]")
    if values and min(values) > 0:
        axis.set_yscale("log")
    _say_if_empty(axis, values)


def _draw_r2(axis: Any, rows: Rows) -> None:
    drawn: list[float] = []
    for split, colour in _SPLITS.items():
        steps, values = _series(rows, f"{split}/r2")
        if values:
            axis.plot(steps, values, color=colour, linewidth=1.4, label=f"{split} (last {values[-1]:.3g})")
            drawn += values
    axis.set_title("Centred R² on the splits")
    low, high = _R2_SHOWN
    clipped = any(value < low for value in drawn)
    axis.set_ylabel("R² [no unit]" + (f", cut off below {low:g}" if clipped else ""))
    if drawn:
        axis.set_ylim(max(low, min(drawn) - 0.05), high + 0.02)
        axis.legend(frameon=False, loc="lower right")
    _say_if_empty(axis, drawn)


def _draw_deviation(axis: Any, rows: Rows) -> None:
    names = [n for n in _networks(rows) if _series(rows, f"balance/{n}/norm_deviation")[1]]
    drawn: list[float] = []
    for colour, name in zip(_colours(len(names)), names, strict=True):
        steps, values = _series(rows, f"balance/{name}/norm_deviation")
        axis.plot(steps, values, color=colour, linewidth=1.4, label=name)
        drawn += values
    axis.set_title("Norm deviation Q = Σ (s_k - mean s)²")
    axis.set_ylabel("Q [parameter unit⁴]")
    _spread_scale(axis, drawn)
    _legend(axis, len(names))
    _say_if_empty(axis, drawn)


def _draw_norms(axis: Any, rows: Rows, names: Names) -> None:
    keys = sorted({key for row in rows for key in row if "/core_norm_sq/" in key}, key=_by_number)
    networks = {key.split("/")[1] for key in keys}
    drawn: list[float] = []
    for colour, key in zip(_colours(len(keys)), keys, strict=True):
        steps, values = _series(rows, key)
        _, network, _, index = key.split("/")
        core = dict(enumerate(names.get(network, []))).get(int(index), f"core {index}")
        label = core if len(networks) == 1 else f"{network}, {core}"
        norms = [value**0.5 for value in values]
        axis.plot(steps, norms, color=colour, linewidth=1.4, label=label)
        drawn += norms
    axis.set_title("Core norms")
    axis.set_ylabel("‖G_k‖ [parameter unit]")
    _spread_scale(axis, drawn)
    _legend(axis, len(keys))
    _say_if_empty(axis, drawn)


def _read(path: Path) -> Rows:
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the folder of a run")
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue  # the last line of a run that was killed
        if isinstance(row, dict) and _STEP in row:
            rows.append(row)
    return rows


def _core_names(path: Path) -> Names:
    """Network -> names of its cores in the order of their numbers; empty without a summary that has them."""
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    names = summary.get("core_names") if isinstance(summary, dict) else None
    return names if isinstance(names, dict) else {}


def _series(rows: Rows, key: str) -> tuple[list[int], list[float]]:
    points = [(row[_STEP], row[key]) for row in rows if row.get(key) is not None]
    return [step for step, _ in points], [value for _, value in points]


def _networks(rows: Rows) -> list[str]:
    found = {key.split("/")[1]: None for row in rows for key in row if key.startswith("balance/")}
    return list(found)


def _by_number(key: str) -> tuple[str, int]:
    _, network, _, index = key.split("/")
    return network, int(index)


def _colours(count: int) -> list[Any]:
    from matplotlib import colormaps

    if count <= _MAX_NAMED:
        return [colormaps["tab10"](i) for i in range(count)]
    return [colormaps["viridis"](i / (count - 1)) for i in range(count)]


def _spread_scale(axis: Any, values: list[float]) -> None:
    """Logarithmic where values span more than a factor of 20, over as many decades as can be told apart."""
    positive = [value for value in values if value > 0]
    if not positive or max(positive) <= 20 * min(positive):
        return
    axis.set_yscale("log")
    lowest = max(positive) / _SPAN_SHOWN
    # Equal start norms give a Q of 0 or of rounding, 1e-13, which would press the curve against the frame.
    if min(values) < lowest:
        _cut_off(axis, min(value for value in values if value >= lowest) / _ROOM_BELOW)


def _cut_off(axis: Any, floor: float) -> None:
    """End the axis at `floor`, and mark the points below it where they would leave the picture."""
    for line in list(axis.lines):
        steps, values = list(line.get_xdata()), list(line.get_ydata())
        line.set_ydata([max(value, floor) for value in values])
        low = [step for step, value in zip(steps, values, strict=True) if value < floor]
        axis.plot(low, [floor] * len(low), "v", color=line.get_color(), clip_on=False)
    axis.set_ylim(bottom=floor)
    axis.set_ylabel(f"{axis.get_ylabel()}, cut off below {floor:.1g} (▼)")


def _legend(axis: Any, count: int) -> None:
    if 1 <= count <= _MAX_NAMED:
        axis.legend(frameon=False, fontsize="small")
    elif count:
        axis.text(0.02, 0.95, f"{count} lines, dark to light in order", transform=axis.transAxes, va="top")


def _say_if_empty(axis: Any, values: list[float]) -> None:
    if not values:
        axis.text(0.5, 0.5, "nothing logged", transform=axis.transAxes, ha="center", color="grey")
