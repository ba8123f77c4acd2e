"""`distsam calibrate`: what contractions take on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from distsam.commands.messages import mistakes_as_messages
from distsam.errors import InputError


def calibrate(
    output: Annotated[Path, typer.Argument(help="File to write, such as costs.json.")],
    *,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    quick: Annotated[bool, typer.Option("--quick", help="A ninth of the cases: a minute in place of four.")] = False,
) -> None:
    """Measure what contractions take here, so that plans of evaluation suit this machine: some minutes.

    Results change by rounding only. Use it on a processor or GPU that is unlike the one the shipped times are of.
    """
    with mistakes_as_messages():
        if output.exists():
            raise InputError(f"output: {output} exists; choose another name")
        if not output.absolute().parent.is_dir():
            raise InputError(f"output: there is no folder {output.absolute().parent}; make it, or choose another file")
        from distsam.train.calibration import calibrate as measure

        measure(output, device, quick, lambda line: print(line, flush=True))
        print(f"{output}: written; next: export DISTSAM_COSTS={output.absolute()}")
