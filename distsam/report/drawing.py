"""The figures of a report, drawn from their specs: as SVG whose colours the page sets, and as PNG and SVG files."""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from distsam.report.axes import figure_bytes, say_if_empty, small_figure, spread_scale
from distsam.report.comparison_specs import Band, Bands, Dots
from distsam.report.figure_specs import Curve, Heat, Lines

Figure = Lines | Heat | Dots | Bands

# Okabe and Ito's colours for all kinds of sight, without their yellow; the page has lighter ones for a dark ground.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
INK, GRID = "#1b1c1e", "#d3d4d6"
# Colour never stands alone: the dashes differ too.
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.2, 1.6)), (0, (7, 2, 1.2, 2)), (0, (3, 1.2)))
_SPAN = 20
_MAX_NAMED = 24
_LONGEST_NAME = 14
_LEGEND_LINE = 0.21
_FONT = "font-family"


def look(position: int) -> tuple[str, Any]:
    """(colour, dashes) of the curve at `position`: thirty that differ."""
    return PALETTE[position % len(PALETTE)], DASHES[(position + position // len(PALETTE)) % len(DASHES)]


def svg_for_page(figure: Figure) -> str:
    """An `<svg>` element, scalable, with CSS variables (--ink, --grid, --c0 ...) for colours."""
    text = figure_bytes(_drawn(figure, named=False), "svg", figure.key).decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<!DOCTYPE.*?>", "", text, flags=re.DOTALL)
    # The page names and sizes it; ids that do not come from the salt would be there once a figure.
    text = re.sub(
        r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img" aria-label="LABEL">', text, count=1
    )
    text = re.sub(r'<g id="[^"]*">', "<g>", text)
    text = re.sub(r"\s*\n\s*", "\n", text).replace("LABEL", _plain(f"{figure.title}"))
    for position, colour in enumerate(PALETTE):
        text = text.replace(colour, f"var(--c{position})")
    # xlink is an XML name only; a page of HTML needs none.
    return text.replace("xlink:href", "href").replace(INK, "var(--ink)").replace(GRID, "var(--grid)")


def figure_files(figure: Figure) -> dict[str, bytes]:
    """File name -> content, as PNG and SVG on white, with title and legend."""
    drawn = _drawn(figure, named=True)
    drawn.set_facecolor("white")
    return {f"{figure.key}.{form}": figure_bytes(drawn, form, figure.key) for form in ("png", "svg")}


def _drawn(figure: Figure, named: bool) -> Any:
    draw: Mapping[type, Any] = {Lines: _lines, Heat: _heat, Dots: _dots, Bands: _bands}
    drawn, axis = draw[type(figure)](figure, named)
    axis.tick_params(colors=INK)
    for spine in axis.spines.values():
        spine.set_color(INK)
    if named:
        drawn.suptitle(figure.title, fontsize=11, y=0.995, color=INK)
    return drawn


def _label_y(axis: Any, text: str) -> None:
    """Above the frame, upright: a long unit would not fit beside it. A new text loses the place of the one before."""
    axis.set_ylabel(text, rotation=0, ha="left", va="bottom", fontsize=10 if len(text) < 50 else 8.5, color=INK)
    axis.yaxis.set_label_coords(-0.14, 1.05)


def _over_steps(labels: Sequence[str], named: bool) -> tuple[Any, Any]:
    foot = _LEGEND_LINE * len(labels) + 0.1 if named and len(labels) > 1 else 0.0
    drawn, axis = small_figure(height=3.0 + (0.25 if named else 0.0), foot=foot)
    axis.set_xlabel("step [updates]", fontsize=10, color=INK)
    axis.grid(True, color=GRID, linewidth=0.7)
    axis.set_axisbelow(True)
    return drawn, axis


def _lines(figure: Lines, named: bool) -> tuple[Any, Any]:
    drawn, axis = _over_steps([curve.label for curve in figure.curves], named)
    _label_y(axis, figure.unit)
    for position, curve in enumerate(figure.curves):
        colour, dash = look(position)
        values = [float("nan") if value is None else value for value in curve.values]
        marker = "o" if len(curve.steps) == 1 else None
        axis.plot(curve.steps, values, color=colour, linestyle=dash, linewidth=1.7, marker=marker, label=curve.label)
    scale(axis, figure.scale, numbers_of(figure.curves))
    _label_y(axis, axis.get_ylabel())
    if named and len(figure.curves) > 1:
        drawn.legend(loc="lower center", fontsize=9, frameon=False, handlelength=3)
    return drawn, axis


def numbers_of(curves: Sequence[Curve]) -> list[float]:
    """All values that are there."""
    return [value for curve in curves for value in curve.values if value is not None]


def scale(axis: Any, kind: str, values: Sequence[float]) -> None:
    """Set the y scale of `kind` (see figure_specs) for `values`; a frame without values says so."""
    say_if_empty(axis, values)
    sizes = sorted(abs(value) for value in values if value)
    if kind == "log" and values and min(values) >= 0:
        spread_scale(axis, values)
    elif kind == "signed" and sizes and sizes[-1] > _SPAN * sizes[len(sizes) // 4]:
        # Linear up to the smaller quarter of the sizes, but no more decades than can be told apart.
        linear = 10.0 ** _exponent(max(sizes[len(sizes) // 4], sizes[-1] * 1e-6))
        axis.set_yscale("symlog", linthresh=linear, linscale=1.0)
        _few_decades(axis, linear, max(values), min(values))
        axis.set_ylabel(f"{axis.get_ylabel()}, linear within ±{linear:.0e}".replace("e-0", "e-").replace("e+0", "e"))
        axis.axhline(0, color=INK, linewidth=0.6)
    elif kind == "zero":
        axis.set_ylim(bottom=0)


def _few_decades(axis: Any, linear: float, highest: float, lowest: float) -> None:
    """At most three ticks on each side of 0: a tick a decade would lie one over the other."""
    ticks = [0.0]
    for sign, end in ((1, highest), (-1, -lowest)):
        if end > linear:
            first, last = _exponent(linear), _exponent(end)
            step = max(1, -(-(last - first + 1) // 3))
            ticks += [sign * 10.0**power for power in range(last, first - 1, -step)]
    axis.set_yticks(ticks)
    axis.minorticks_off()


def _exponent(value: float) -> int:
    return int(f"{value:e}".partition("e")[2])


def _heat(figure: Heat, named: bool) -> tuple[Any, Any]:
    count = len(figure.names)
    drawn, axis = small_figure(height=min(4.5, max(2.2, 0.9 + 0.22 * count)) + (0.25 if named else 0.0))
    edges = _edges(figure.steps)
    values = [value for row in figure.norms for value in row if value > 0]
    spread = bool(values) and max(values) > _SPAN * min(values)
    # As a picture inside the SVG: a rectangle for each core and step would be megabytes.
    mesh = axis.pcolormesh(
        edges, range(count + 1), figure.norms, cmap="cividis", norm="log" if spread else None, rasterized=True
    )
    axis.invert_yaxis()
    every = -(-count // _MAX_NAMED)
    names = [name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…" for name in figure.names[::every]]
    axis.set_yticks([position + 0.5 for position in range(0, count, every)], names, fontsize=9)
    axis.set_xlabel("step [updates]", fontsize=10, color=INK)
    left = 0.25 + 0.075 * max(map(len, names), default=0)
    drawn.subplots_adjust(left=left / 5.0, right=0.95)
    bar = drawn.colorbar(mesh, ax=axis, pad=0.03, fraction=0.08)
    bar.outline.set_edgecolor(INK)
    bar.ax.tick_params(colors=INK, which="both", labelsize=9)
    bar.ax.set_title("‖G‖ [unit]", fontsize=9, color=INK, loc="right")
    return drawn, axis


def _edges(steps: Sequence[int]) -> list[float]:
    """Each column reaches half way to its neighbours."""
    if len(steps) == 1:
        return [steps[0] - 0.5, steps[0] + 0.5]
    middles = [(a + b) / 2 for a, b in pairwise(steps)]
    return [float(steps[0]), *middles, float(steps[-1])]


def _dots(figure: Dots, named: bool) -> tuple[Any, Any]:
    drawn, axis = small_figure(height=1.1 + 0.36 * len(figure.names) + (0.25 if named else 0.0))
    axis.axvline(0, color=INK, linewidth=0.8)
    axis.grid(True, axis="x", color=GRID, linewidth=0.7)
    for position, (mean, interval) in enumerate(zip(figure.means, figure.intervals, strict=True)):
        colour = PALETTE[0]
        if interval is not None:
            axis.plot(interval, [position, position], color=colour, linewidth=2.2, solid_capstyle="butt")
        if mean is not None:
            axis.plot([mean], [position], "o", color=colour, markersize=7)
    axis.set_yticks(range(len(figure.names)), [name[:22] for name in figure.names], fontsize=10)
    axis.set_ylim(len(figure.names) - 0.5, -0.5)
    axis.set_xlabel(figure.unit, fontsize=10, color=INK)
    drawn.subplots_adjust(left=(0.25 + 0.085 * max((min(len(n), 22) for n in figure.names), default=0)) / 5.0)
    return drawn, axis


def _bands(figure: Bands, named: bool) -> tuple[Any, Any]:
    drawn, axis = _over_steps([band.label for band in figure.bands], named)
    _label_y(axis, figure.unit)
    for position, band in enumerate(figure.bands):
        colour, dash = look(position)
        axis.fill_between(band.steps, band.lowest, band.highest, color=colour, alpha=0.18, linewidth=0)
        axis.plot(band.steps, band.middle, color=colour, linestyle=dash, linewidth=1.7, label=band.label)
    scale(axis, "log", [value for band in figure.bands for value in _values(band)])
    _label_y(axis, axis.get_ylabel())
    if named and len(figure.bands) > 1:
        drawn.legend(loc="lower center", fontsize=9, frameon=False, handlelength=3)
    return drawn, axis


def _values(band: Band) -> list[float]:
    return [*band.lowest, *band.middle, *band.highest]


def _plain(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
