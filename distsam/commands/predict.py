"""`distsam predict`: what a run's best weights say of entries that are not known."""

from pathlib import Path
from typing import Annotated

import typer

from distsam.commands.loading import end_loading
from distsam.commands.messages import mistakes_as_messages


def predict(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="data.path=FILE, where the data of the run lie elsewhere by now.")
    ] = None,
    *,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="File to write: .npz, or a table (.csv, .parquet, .feather).")
    ],
    entries: Annotated[
        Path | None,
        typer.Option(help=".npy or .npz with (N, order) indices, or a table with a column of labels for each mode."),
    ] = None,
) -> None:
    """Complete the tensor (known entries are kept), or predict given entries (--entries), in one process."""
    with mistakes_as_messages():
        from distsam.train import predict_run

        end_loading()
        print(f"{output}: {predict_run(run, output, entries, overrides or [])}")
