"""`distsam work`: do what is left of a comparison or a search, beside others that do the same."""

from pathlib import Path
from typing import Annotated

import typer

from distsam.commands.loading import end_loading
from distsam.commands.messages import mistakes_as_messages


def work(
    study: Annotated[Path, typer.Argument(help="Folder of a comparison or a search.")],
    *,
    workers: Annotated[int, typer.Option(help="Runs at the same time on this machine.")] = 1,
    tied: Annotated[bool, typer.Option(hidden=True, help="End when standard input does; print no result.")] = False,
) -> None:
    """Go on with a comparison or a search; any number of processes and machines may, where they share its folder."""
    with mistakes_as_messages():
        from distsam.commands.studies import do_runs, run_study
        from distsam.runs.study import StudyFolder

        end_loading()
        if tied:
            do_runs(StudyFolder(study), 1, tied=True)
        else:
            run_study(StudyFolder(study), workers)
