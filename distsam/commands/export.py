"""`distsam export`: a run's best weights as a plain state dict of torch."""

from pathlib import Path
from typing import Annotated

import typer

from distsam.commands.loading import end_loading
from distsam.commands.messages import mistakes_as_messages


def export(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    *,
    output: Annotated[Path, typer.Option("-o", "--output", help=".pt file to write, for torch.load.")],
) -> None:
    """Write the best weights as a state dict, whole, in one process; neither data nor DeepSpeed are needed."""
    with mistakes_as_messages():
        from distsam.train import export_run

        end_loading()
        print(f"{output}: {export_run(run, output)}")
