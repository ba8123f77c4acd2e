"""The entries that a completion learns from: all of them, or with a routed mode those that this rank owns."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from distsam.errors import InputError


def known_entries(
    build: Callable[[Any], Any], stream: Callable[[Any], Any] | None, data: Any, seed: int, context: Any
) -> tuple[Any, Any, Any]:
    """Entries, split and routing, as a CompletionTask takes them.

    Args:
        build: data -> all entries.
        stream: data -> the same in blocks, as `Observations`; None where a source has no such form: with a routed mode
            it is then loaded whole for a moment, and what other ranks own is dropped.
        data: the keys of the data section.
        seed: of the split.
        context: a TaskContext.

    Raises:
        ArgumentError: the entries cannot be used, or not be divided.
    """
    shares = data.observed, data.validation, data.fibre_mode, seed
    if context.routed_mode is None:
        from distsam.tasks.split import split_entries

        entries = build(data)
        return entries, split_entries(entries, *shares), None
    from distsam.tasks.observations import HeldObservations
    from distsam.tasks.routed import load_routed

    observations = HeldObservations(build(data)) if stream is None else stream(data)
    return load_routed(observations, context, *shares)


def stream_file(data: Any) -> Any:
    """The entries of data.path, in blocks.

    Raises:
        InputError: it is a table, or cannot be read.
    """
    from distsam.tasks.files import stream_entries

    refuse_table(data.path)
    return stream_entries(data.path)


def stream_lowrank(data: Any) -> Any:
    """The entries of a synthetic low-rank tensor, in blocks.

    The tensor is drawn whole, because its scale is that of all its entries; their indices never are.
    """
    from distsam.tasks.entries import Origin
    from distsam.tasks.observations import DenseObservations
    from distsam.tasks.sources import lowrank_tensor

    tensor = lowrank_tensor(data.equation, data.sizes, noise=data.noise, seed=data.seed)
    return DenseObservations(tensor, name="lowrank", origin=Origin("source", "lowrank"))


def refuse_table(path: str) -> None:
    """InputError where the path is that of a table, which has labels."""
    if Path(path).suffix.lower() in (".csv", ".tsv", ".parquet", ".feather", ".arrow", ".nc", ".mat"):
        raise InputError(f"data.path: {path} is a table, or an array with labels; set data.source=table")
