"""`distsam compress`: a saved model with tensor networks in place of its matrices."""

from pathlib import Path
from typing import Annotated, Any

import typer

from distsam.commands.messages import mistakes_as_messages
from distsam.errors import InputError


def compress(
    model: Annotated[Path, typer.Argument(help="Folder with model.safetensors, or such a file.")],
    *,
    output: Annotated[Path, typer.Option("-o", "--output", help="New folder for the compressed model.")],
    layers: Annotated[
        list[str] | None, typer.Option(help="Pattern of module names, such as 'encoder.*'; may be repeated.")
    ] = None,
    format: Annotated[str, typer.Option(help="cp, tucker, tt, tt_matrix or tr.")] = "tt",
    rank: Annotated[str, typer.Option(help="A number, ratio:4, error:0.1 or full.")] = "ratio:4",
    rules: Annotated[
        Path | None, typer.Option(help="YAML file: pattern -> {format, rank, ...}, in place of --layers.")
    ] = None,
    dense: Annotated[bool, typer.Option(help="Write matrices again, of the rank that was asked for.")] = False,
    seed: Annotated[int, typer.Option(help="Of what the decompositions draw at random.")] = 0,
) -> None:
    """Compress a saved model's weights, and print for each what it had, what it has, and the error.

    `distsam.load_tensorized(model, "OUTPUT/model.safetensors")` loads it into the dense architecture.
    """
    with mistakes_as_messages():
        chosen = _rules(layers, format, rank, rules)
        from distsam.train.compress import compress_model

        table = compress_model(model, output, chosen, dense=dense, seed=seed)
        print(table)
        print(f"\n{output}")


def _rules(layers: list[str] | None, format: str, rank: str, file: Path | None) -> dict[str, Any]:
    if (layers is None or not layers) == (file is None):
        raise InputError("--layers: give patterns of module names, or a file of rules with --rules, one of the two")
    if file is None:
        options = {"format": format, "rank": int(rank) if rank.isdecimal() else rank}
        return dict.fromkeys(layers or (), options)
    from distsam.train.config_file import read_yaml

    return read_yaml(file)
