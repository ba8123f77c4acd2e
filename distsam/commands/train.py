"""`distsam train`: one run, alone or as one of many ranks."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from distsam.commands.loading import end_loading
from distsam.commands.messages import mistakes_as_messages
from distsam.environment import place
from distsam.errors import RunIncomplete

_INTERRUPTED = 130


def train(
    config: Annotated[Path, typer.Argument(help="YAML file of the run.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="section.key=value, such as optim.rho=0.1; the last one wins.")
    ] = None,
) -> None:
    """Train; alone, under torchrun or under srun. `distsam init` writes a config, `distsam keys` lists its keys."""
    with mistakes_as_messages():
        from distsam.train import load_config

        settings = load_config(config, overrides or [])
        # Only now: it loads torch, which a misspelt key need not wait for.
        from distsam.train import run_training

        end_loading()
        incomplete: RunIncomplete | None = None
        try:
            summary = run_training(settings)
        except RunIncomplete as error:
            incomplete, summary = error, error.summary
        if place().rank == 0:
            from distsam.commands.table import run_report

            if incomplete is None or (Path(settings.run.dir) / "metrics.jsonl").exists():
                _draw(settings.run.dir)
            print(run_report(summary, settings.run.dir), flush=True)
        if incomplete is not None:
            raise incomplete
    if summary.stopped_by == "SIGINT":
        raise SystemExit(_INTERRUPTED)


def _draw(run_dir: str) -> None:
    from distsam.report.curves import draw_curves

    try:
        draw_curves(run_dir)
    except Exception as error:  # the run is done and saved: a picture that fails must not fail it
        print(f"distsam: curves.png could not be drawn: {error}", file=sys.stderr)
