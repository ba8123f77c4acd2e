"""The console script: registers the commands, one file each in `distsam.commands`."""

import os
import sys
from contextlib import suppress
from typing import Annotated

import typer

from distsam import __version__
from distsam.commands.calibrate import calibrate
from distsam.commands.compare import compare
from distsam.commands.compress import compress
from distsam.commands.evaluate import evaluate
from distsam.commands.export import export
from distsam.commands.init import init
from distsam.commands.keys import keys
from distsam.commands.loading import begin_loading
from distsam.commands.plan import plan
from distsam.commands.predict import predict
from distsam.commands.report import report
from distsam.commands.train import train
from distsam.commands.tune import tune
from distsam.commands.watch import watch
from distsam.commands.work import work
from distsam.commands.workspace import wandb_workspace

app = typer.Typer(
    help="Train sharded tensor networks with distributed SAM and see the norm deviation of their cores.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
COMMANDS = (
    train,
    plan,
    watch,
    report,
    evaluate,
    predict,
    export,
    compress,
    tune,
    compare,
    work,
    init,
    keys,
    calibrate,
    wandb_workspace,
)
for command in COMMANDS:
    app.command()(command)


def main() -> None:
    """The console script."""
    begin_loading()
    # Whoever may write into a run folder can have its run resumed with weights of theirs: not the whole world.
    os.umask(os.umask(0) | 0o002)
    try:
        app()
    except SystemExit as end:
        # Python's own way to end takes half a second with torch loaded, and in 1 of 40 runs threads of gloo, which
        # outlive the process group, abort the process meanwhile. All files are closed by now, so it may end at once.
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):  # the reader may be gone already
                if stream is not None:
                    stream.flush()
        os._exit(end.code if isinstance(end.code, int) else 0)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"distsam {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    # DeepSpeed's launcher gives it to whatever it starts; the environment says the same.
    local_rank: Annotated[int | None, typer.Option("--local_rank", "--local-rank", hidden=True)] = None,
) -> None:
    pass
