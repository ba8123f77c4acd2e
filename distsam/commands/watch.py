"""`distsam watch`: how runs stand, while they train."""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distsam.commands.loading import end_loading
from distsam.commands.messages import mistakes_as_messages
from distsam.errors import InputError

if TYPE_CHECKING:
    from distsam.report.status import RunStatus

_LEAST_S = 0.1


def watch(
    runs: Annotated[list[Path], typer.Argument(help="Run folders.", metavar="RUN...")],
    *,
    once: Annotated[bool, typer.Option("--once", help="Say how they stand now, and end.")] = False,
    every: Annotated[float, typer.Option(help="Seconds between two looks.")] = 2.0,
) -> None:
    """Follow runs that train, here or on another machine that shares their folders, until all are over.

    In a terminal a table that is drawn anew; elsewhere one line for each row that a run writes. Ctrl-C ends it.
    """
    with mistakes_as_messages():
        if not every >= _LEAST_S:
            raise InputError(f"--every: {every:g} is too short; give at least {_LEAST_S:g} seconds")
        from distsam.report.status import RunWatch

        watches = [RunWatch(run) for run in dict.fromkeys(runs)]
        end_loading()

        def look() -> list["RunStatus"]:
            return [run.look() for run in watches]

        try:
            _show(look, once, lambda: time.sleep(every))
        except KeyboardInterrupt:  # the usual way to end it
            return


def _show(look: Callable[[], Sequence["RunStatus"]], once: bool, wait: Callable[[], None]) -> None:
    if not sys.stdout.isatty():
        _follow_lines(look, once, wait)
        return
    from distsam.report.live_table import follow_runs, print_runs

    if once:
        print_runs(look())
    else:
        follow_runs(look, wait)


def _follow_lines(look: Callable[[], Sequence["RunStatus"]], once: bool, wait: Callable[[], None]) -> None:
    """A line when a run has a new row or another state; until none goes on."""
    from distsam.report.status_text import status_line

    said: dict[Path, tuple[object, ...]] = {}
    while True:
        statuses = look()
        for status in statuses:
            now = (status.state, status.step, status.checkpoint)
            if said.get(status.path) != now:
                said[status.path] = now
                print(status_line(status), flush=True)
        if once or not any(status.is_live for status in statuses):
            return
        wait()
