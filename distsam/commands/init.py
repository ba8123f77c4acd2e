"""`distsam init`: a commented config to begin with."""

from pathlib import Path
from typing import Annotated

import typer

from distsam.commands.messages import mistakes_as_messages
from distsam.errors import InputError

# They are in the package wherever it is installed.
CONFIGS = Path(__file__).parents[1] / "configs"


def init(
    name: Annotated[
        str, typer.Argument(help="Which one: file, table, quickstart, ... (an unknown name lists them).")
    ] = "file",
    *,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="File to write; NAME.yaml without it.")] = None,
) -> None:
    """Write a commented config that `distsam train` runs; `distsam keys` says what else it may hold."""
    with mistakes_as_messages():
        names = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
        if name not in names:
            raise InputError(f"init: {name!r} is no config; choose one of {', '.join(names)}")
        target = output or Path(f"{name}.yaml")
        try:
            # "x": a config that somebody has worked on is never written over.
            with target.open("x", encoding="utf-8") as stream:
                stream.write((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
        except FileExistsError:
            raise InputError(f"--output: {target} exists; choose another name") from None
        except OSError as error:
            raise InputError(f"--output: {target} cannot be written ({error.strerror}); choose another file") from None
        print(f"{target}: written; next: distsam train {target} run.dir=runs/mine")
