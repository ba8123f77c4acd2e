"""The console script: registers the commands, one file each in `distsam.commands`."""

import os
import sys
from contextlib import suppress
from typing import Annotated

import typer

from distsam import __version__
from distsam.commands.evaluate import evaluate
from distsam.commands.loading import begin_loading
from distsam.commands.predict import predict
from distsam.commands.train import train

app = typer.Typer(
    help="Train sharded tensor networks with distributed SAM and see the norm deviation of their cores.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (train, evaluate, predict):
    app.command()(command)


def main() -> None:
    """The console script."""
    begin_loading()
    try:
        app()
    except SystemExit as end:
        # Taking torch down takes half a second, and threads of gloo that outlive the process group abort the process
        # (1 of 40 ends) when they want the interpreter meanwhile. All files are closed by now: nothing is left to do.
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):  # nobody may be reading any more
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
) -> None:
    pass
