"""`distsam evaluate`: the scores of a run, computed again."""

import json
import sys
from math import isfinite
from pathlib import Path
from typing import Annotated

import typer

from distsam.commands.loading import end_loading
from distsam.commands.messages import mistakes_as_messages


def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="data.path=FILE, where the data of the run lie elsewhere by now.")
    ] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Score the best weights of a run again, in one process."""
    with mistakes_as_messages():
        from distsam.commands.table import score_table
        from distsam.runs.folder import RunFolder
        from distsam.runs.numbers import without_infinities
        from distsam.runs.summary import read_summary
        from distsam.train import evaluate_run

        end_loading()
        scores = evaluate_run(run, overrides or [])
        if any(score is not None and not isfinite(score) for score in scores.values()):
            print(f"distsam: {run}: its weights give scores that are no finite numbers: it diverged", file=sys.stderr)
        if as_json:
            print(json.dumps(without_infinities(scores), allow_nan=False))
            return
        summary = read_summary(RunFolder(run).summary)  # none where the run was killed
        print(score_table(scores, summary.goal.columns if summary and summary.goal else ()))
