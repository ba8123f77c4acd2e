"""The page: one HTML text with everything in it, nothing loaded from elsewhere. The one place that knows jinja2."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from distsam.report.comparison_specs import (
    Bands,
    Dots,
    arms_table,
    best_difference,
    differences_figure,
    differences_table,
    paths_figure,
)
from distsam.report.drawing import DASHES, Figure, look, svg_for_page
from distsam.report.figure_specs import Heat, Lines, first_figure, other_figures
from distsam.report.formatting import shown
from distsam.report.page_tables import (
    attribution_tables,
    costs_table,
    environment_table,
    numbers_table,
    results_table,
    settings_table,
)

Tree = Mapping[str, Any]
MARK = '<meta name="generator" content="distsam report">'
_TEMPLATE = Path(__file__).with_name("page.html")


def page_html(data: Tree, reload_s: float | None = None) -> str:
    """The page for `data` (see page_data).

    Args:
        reload_s: after so many seconds the page loads itself anew; None for a page that is finished.
    """
    # Names of runs, cores and settings are a user's own: whatever they hold, they are text and never markup.
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    runs, comparison = data["runs"], data["comparison"]
    return template.render(
        data=data,
        runs=runs,
        mark=Markup(MARK),
        embedded=Markup(embedded(data)),
        reload_s=reload_s,
        title=_title(data),
        number=_number(data),
        first=_first(data),
        sections=[] if not runs else list(other_figures(runs)),
        comparison=None if comparison is None else _comparison(comparison),
        results=results_table(runs),
        costs=costs_table(runs),
        settings=settings_table(runs),
        environment=environment_table(runs),
        attributions=list(attribution_tables(runs)),
        svg=lambda figure: Markup(svg_for_page(figure)),
        legend=_legend,
        numbers=numbers_table,
        shown=shown,
    )


def figures_of(data: Tree) -> Iterator[Figure]:
    """Every figure of the page, in its order."""
    yield from (figure for figure in (_first(data),) if figure is not None)
    if data["comparison"] is not None:
        yield from (
            figure for figure in _comparison(data["comparison"])["figures"] if figure.key != "paths" or data["runs"]
        )
    if data["runs"]:
        yield from (figure for _, figures in other_figures(data["runs"]) for figure in figures)


def embedded(data: Tree) -> str:
    """The data as JSON that is safe inside a script element: no "<" can end it."""
    text = json.dumps(data, allow_nan=False, ensure_ascii=False, separators=(",", ":"), default=str)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _title(data: Tree) -> str:
    names = [run["name"] for run in data["runs"]]
    return f"distsam: {', '.join(names[:4])}{' …' if len(names) > 4 else ''}" if names else "distsam: comparison"


def _first(data: Tree) -> Lines | Bands | None:
    """The plot of the first screen; of a comparison without runs the paths of its arms."""
    if data["runs"]:
        deviation = first_figure(data["runs"])
        return deviation if deviation.curves else None
    paths = paths_figure(data["comparison"] or {})
    return paths if paths.bands else None


def _number(data: Tree) -> dict[str, str] | None:
    """The number that is watched: of one run its deviation; of several, the smallest; of arms the best difference."""
    if data["comparison"] is not None:
        return best_difference(data["comparison"])
    heads = [(run["headline"], run["name"]) for run in data["runs"] if run["headline"]["deviation"] is not None]
    if not heads:
        return None
    head, name = min(heads, key=lambda pair: pair[0]["deviation"])
    what = f"norm deviation of {name}, the smallest of {len(heads)}" if len(heads) > 1 else "norm deviation Q"
    return {
        "value": shown(head["deviation"]),
        "what": what,
        "note": f"parameter unit⁴; {shown(head['first_deviation'])} at the start",
    }


def _comparison(content: Tree) -> dict[str, Any]:
    dots, paths = differences_figure(content), paths_figure(content)
    figures: list[Dots | Bands] = [dots] if dots.names else []
    return {
        "arms": arms_table(content),
        "differences": differences_table(content),
        "figures": figures + ([paths] if paths.bands else []),
    }


def _legend(figure: Figure) -> Sequence[tuple[str, Markup]]:
    """(label, picture of its line) of each curve, where there is more than one."""
    if isinstance(figure, Heat | Dots):
        return []
    labels = [item.label for item in (figure.curves if isinstance(figure, Lines) else figure.bands)]
    return [(label, _sample(position)) for position, label in enumerate(labels)] if len(labels) > 1 else []


def _sample(position: int) -> Markup:
    _, dash = look(position)
    lengths = "" if dash == DASHES[0] else " ".join(str(1.7 * length) for length in dash[1])
    return Markup(
        '<svg class="sample" viewBox="0 0 30 8" aria-hidden="true"><line x1="0" y1="4" x2="30" y2="4" '
        'stroke="var(--c{})" stroke-width="2.5" stroke-dasharray="{}"/></svg>'
    ).format(position % 6, lengths)
