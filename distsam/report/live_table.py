"""Runs in a terminal, drawn anew as they go on: one as a block of lines, several as the rows of a table.

One of the two importers of rich; the other is the bar of a run that trains, which knows no report.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from distsam.report.status import RunStatus
from distsam.report.status_text import (
    change_text,
    core_text,
    deviation_text,
    duration,
    number,
    printable,
    progress_lines,
    record_lines,
    score_lines,
    sparkline,
    state_text,
    step_text,
)

_STYLES = {"starting": "yellow", "training": "green", "over": "bold", "dead": "bold red", "gone": "bold red"}
# Characters of the course of the deviation.
_WIDE, _NARROW = 28, 8


def print_runs(statuses: Sequence[RunStatus]) -> None:
    """How the runs stand, once."""
    Console(highlight=False).print(drawn(statuses))


def follow_runs(look: Callable[[], Sequence[RunStatus]], wait: Callable[[], None]) -> None:
    """Draw the runs again and again, until none goes on; the last drawing stays in the terminal.

    Args:
        look: how the runs stand.
        wait: returns when it is time to look again.
    """
    statuses = look()
    # Drawn when there is something new, by this thread alone.
    with Live(drawn(statuses), console=Console(highlight=False), auto_refresh=False) as live:
        live.refresh()
        while any(status.is_live for status in statuses):
            wait()
            statuses = look()
            live.update(drawn(statuses), refresh=True)


def drawn(statuses: Sequence[RunStatus]) -> RenderableType:
    """What a terminal shows of the runs; it fits into 80 columns."""
    return _block(statuses[0]) if len(statuses) == 1 else _rows(statuses)


def _block(status: RunStatus) -> RenderableType:
    title = Text.assemble(
        (printable(str(status.path)), "bold"), "  ", (printable(state_text(status)), _STYLES[status.state])
    )
    balance = status.balance
    balance_lines = [] if balance is None else [sparkline(balance.history, _WIDE), core_text(balance)]
    lines: dict[str, Iterable[str]] = {
        "progress": ["  ".join(progress_lines(status))],
        "scores": ["  ".join(score_lines(status))],
        "norm deviation": [deviation_text(status), *filter(None, balance_lines)],
    }
    grid = Table.grid(padding=(0, 2))
    for label, values in lines.items():
        grid.add_row(Text(label), _lines(values))
    grid.add_row(Text("record"), Text("  ").join(_record(status)))
    return Group(title, grid)


def _rows(statuses: Sequence[RunStatus]) -> RenderableType:
    """A line a run; what a person should see of it follows below, because it would not fit."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("run", overflow="fold")
    for title in ("step", "left", "score", "deviation"):
        table.add_column(title, no_wrap=True, justify="right")
    table.add_column("", no_wrap=True)
    table.add_column("largest core", overflow="ellipsis", no_wrap=True)
    names = _short_names([status.path for status in statuses])
    for name, status in zip(names, statuses, strict=True):
        table.add_row(Text(name, style=_STYLES[status.state]), *_cells(status))
    return Group(table, *(line for name, status in zip(names, statuses, strict=True) for line in _notes(name, status)))


def _cells(status: RunStatus) -> Iterator[Text]:
    yield Text(step_text(status))
    yield Text(status.state if status.left_s is None else duration(status.left_s))
    yield Text(number(next((value for _, value in status.scores), None)))
    balance = status.balance
    if balance is not None:
        yield Text(number(balance.deviation), style="bold red" if status.alerts else "")
        # The arrow alone: there is no room for the per cent.
        yield Text(f"{sparkline(balance.history, _NARROW)} {change_text(balance.change)[:1]}")
        yield Text(printable("" if balance.core is None else f"{balance.core} {balance.share:.0%}"))


def _notes(name: str, status: RunStatus) -> Iterator[Text]:
    if status.state in ("dead", "gone"):
        yield Text(f"{name}: {printable(state_text(status))}", style=_STYLES[status.state])
    if status.alerts:
        yield Text(f"{name}: {next(iter(record_lines(status)))}", style="bold red")


def _short_names(paths: Sequence[Path]) -> list[str]:
    """The paths without the folders that they have in common."""
    absolute = [path.absolute() for path in paths]
    parent = Path(os.path.commonpath([path.parent for path in absolute]))
    return [printable(str(path.relative_to(parent))) for path in absolute]


def _record(status: RunStatus) -> Iterable[Text]:
    for line in record_lines(status):
        yield Text(printable(line), style="bold red" if line.startswith("alerts") and status.alerts else "")


def _lines(lines: Iterable[str]) -> Text:
    # Text, not markup: a core may be called [red].
    return Text("\n".join(printable(line) for line in lines))
