"""Figures without a window: panels, scales, colours and legends, the one place that knows matplotlib."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from distsam.runs.atomic import write_atomically

_MAX_COLOURS = 10
_MAX_ENTRIES = 16
_SPAN_SHOWN = 1e5
_ROOM_BELOW = 3
_MAX_POINTS_TO_AVOID = 20_000
_DASHES = ("-", "--", ":", "-.")


def new_figure(title: str) -> tuple[Any, list[Any]]:
    """A figure of 1920 x 960 pixels with six panels over the steps."""
    # Not pyplot: it looks for windows, keeps every figure, and takes half as long again to load.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 8))
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(2, 3, sharex=True).flat)
    figure.subplots_adjust(left=0.06, right=0.99, bottom=0.07, top=0.91, wspace=0.25, hspace=0.25)
    figure.suptitle(title)
    for axis in panels:
        axis.set_xlabel("step [updates]")
        axis.tick_params(labelbottom=True)
        axis.grid(True, alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, panels


def figure_of(title: str, num_panels: int) -> tuple[Any, list[Any]]:
    """A figure of so many panels beside each other, at most three in a row, each with axes of its own."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(3, num_panels)
    rows = -(-num_panels // columns)
    figure = Figure(figsize=(5.3 * columns, 4.2 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in panels:
        axis.grid(True, alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in panels[num_panels:]:
        axis.remove()
    return figure, panels[:num_panels]


def save_figure(figure: Any, target: Path) -> None:
    """Write the figure as PNG into `target`, whole or not at all."""

    def write(stream: BinaryIO) -> None:
        figure.savefig(stream, format="png", dpi=120)

    write_atomically(target, write)


def small_figure(width: float = 5.0, height: float = 3.0, foot: float = 0.0) -> tuple[Any, Any]:
    """A figure with one frame that is legible at the width of a phone.

    Args:
        width, height: in inches of 72 units of an SVG.
        foot: inches more, below the frame, for a legend.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height + foot), facecolor="none")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    figure.subplots_adjust(
        left=0.74 / width, right=1 - 0.12 / width, bottom=(foot + 0.5) / (height + foot), top=1 - 0.42 / (height + foot)
    )
    axis.set_facecolor("none")
    axis.tick_params(labelsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    axis.locator_params(axis="x", nbins=6)
    return figure, axis


def figure_bytes(figure: Any, form: str, name: str) -> bytes:
    """The figure as "svg" (texts stay texts) or "png" (at 160 dots an inch); `name` keeps ids of several SVGs apart."""
    from matplotlib import rc_context

    stream = BytesIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        metadata = {"Date": None, "Creator": None, "Format": None, "Type": None} if form == "svg" else None
        figure.savefig(stream, format=form, dpi=160, metadata=metadata)
    return stream.getvalue()


def draw_line(axis: Any, series: tuple[list[int], list[float]], colour: Any, label: str = "", dash: str = "-") -> None:
    """One quantity over the steps; a single point is marked, because a line through one point is invisible."""
    steps, values = series
    marker = "o" if len(steps) == 1 else None
    axis.plot(steps, values, color=colour, linewidth=1.4, linestyle=dash, marker=marker, label=label or None)


def mark_step(axis: Any, step: int) -> None:
    """A dotted line where the weights that are kept were taken."""
    axis.axvline(step, color="grey", linewidth=1.0, linestyle=":", label=f"best, step {step}")


def colours(count: int) -> list[Any]:
    """One colour each: ten that can be told apart, or a scale from dark to light."""
    from matplotlib import colormaps

    if count <= _MAX_COLOURS:
        return [colormaps["tab10"](i) for i in range(count)]
    return [colormaps["viridis"](i / (count - 1)) for i in range(count)]


def shades(colour: Any, count: int) -> list[tuple[Any, str]]:
    """(colour, dashes) of `count` lines that belong together: from `colour` towards white."""
    mix = [0.6 * i / max(count - 1, 1) for i in range(count)]
    return [
        (tuple(part + (1 - part) * share for part in colour[:3]), _DASHES[i % len(_DASHES)])
        for i, share in enumerate(mix)
    ]


def spread_scale(axis: Any, values: Sequence[float]) -> None:
    """Logarithmic where values span more than a factor of 20, over as many decades as can be told apart."""
    positive = [value for value in values if value > 0]
    if not positive or max(positive) <= 20 * min(positive):
        return
    axis.set_yscale("log")
    lowest = max(positive) / _SPAN_SHOWN
    # Equal start norms give a Q of 0 or of rounding, 1e-13, which would press the curve against the frame.
    if min(values) < lowest:
        _cut_off(axis, min(value for value in values if value >= lowest) / _ROOM_BELOW)


def add_legend(axis: Any, note: str) -> None:
    """A legend of the lines that have a label; where they would be too many, `note` and the one that ends highest."""
    lines, labels = axis.get_legend_handles_labels()
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8}
    if 1 <= len(labels) <= _MAX_ENTRIES:
        # Looking for the place that hides least takes seconds where there is much to be hidden.
        is_small = sum(len(line.get_xdata()) for line in lines) <= _MAX_POINTS_TO_AVOID
        axis.legend(
            loc="best" if is_small else "upper right",
            fontsize="small",
            ncols=1 if len(labels) <= _MAX_ENTRIES // 2 else 2,
            framealpha=box["alpha"],
            edgecolor=box["edgecolor"],
        )
    elif labels:
        ends = {label: line.get_ydata()[-1] for line, label in zip(lines, labels, strict=True) if len(line.get_ydata())}
        highest = max(ends, key=ends.__getitem__, default="none")
        text = f"{note}\nhighest at the end: {highest}"
        axis.text(0.02, 0.97, text, transform=axis.transAxes, va="top", fontsize="small", bbox=box)


def say_if_empty(axis: Any, values: Sequence[float]) -> None:
    """A panel without lines says that there are none."""
    if not values:
        axis.text(0.5, 0.5, "nothing logged", transform=axis.transAxes, ha="center", color="grey")


def _cut_off(axis: Any, floor: float) -> None:
    """End the axis at `floor`, and mark the points below it where they would leave the picture."""
    for line in list(axis.lines):
        steps, values = list(line.get_xdata()), list(line.get_ydata())
        line.set_ydata([max(value, floor) for value in values])
        low = [step for step, value in zip(steps, values, strict=True) if value < floor]
        axis.plot(low, [floor] * len(low), "v", color=line.get_color(), clip_on=False)
    axis.set_ylim(bottom=floor)
    axis.set_ylabel(f"{axis.get_ylabel()}, cut off below {floor:.1g} (▼)")
