"""What the best weights of a run say, written into a file: values of entries, or the weights themselves."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from distsam.errors import InputError
from distsam.runs.atomic import write_atomically
from distsam.tasks.entries import Entries
from distsam.tasks.files import read_indices
from distsam.tasks.labels import Mode
from distsam.train.checkpoint_reader import load_tensors, read_state, tensor_shapes
from distsam.train.keys_of_arguments import arguments_as_keys
from distsam.train.run_state import BEST
from distsam.train.saved_run import best_prefix, find_run, open_run

# Ends of names that stand for tables, which pyarrow writes.
TABLES = (".csv", ".parquet", ".feather")


def predict_run(
    run_dir: str | Path, output: str | Path, entries: str | Path | None = None, overrides: Sequence[str] = ()
) -> str:
    """Write what the run's best weights predict into the file `output`.

    An .npz file gets arrays: `tensor`, which has known entries as they are known and the others predicted, and
    `prediction`, what the network says everywhere. A table (.csv, .parquet, .feather) gets a row for each entry: its
    labels, the value, `prediction`, and whether it was known.

    Args:
        entries: which entries to predict, instead of the whole tensor: a .npy or .npz file with (N, order) indices, or
            a table with a column of labels for each mode. The output then has `indices` or labels, and `values`.
        overrides: see `open_run`.

    Returns:
        What was written, for people.

    Raises:
        InputError: see `open_run`; or `output` is no file of these kinds in a folder that exists, an index or label is
            not of the tensor, or the task of the run predicts no tensor.
    """
    target = _checked_output(Path(output), (".npz", *TABLES))
    if target.suffix in TABLES:
        with arguments_as_keys("--output", source="--output"):
            import distsam.tasks.tables  # noqa: F401  said before the work is done, if it is not installed
    run = open_run(run_dir, overrides)
    task: Any = run.task
    if not all(hasattr(task, member) for member in ("fill", "predict", "entries")):
        kind = run.config.task.kind
        raise InputError(f"{run_dir}: is a run of task.kind={kind}, which completes no tensor: nothing to predict")
    known: Entries = task.entries
    if entries is None:
        prediction = task.fill(run.model, keep_known=False)
        _warn_of_bad(prediction)
        if target.suffix in TABLES:
            _write_completed(target, known, prediction)
        else:
            tensor = prediction.copy()
            tensor[tuple(known.indices.T)] = known.values
            _write(target, lambda stream: np.savez(stream, tensor=tensor, prediction=prediction))
        num_known = len(known.values)
        shape = prediction.shape
        return f"tensor of shape {shape}: {num_known} known entries kept, {prediction.size - num_known} predicted"
    indices = _asked(Path(entries), known)
    values = task.predict(run.model, indices)
    _warn_of_bad(values)
    if target.suffix in TABLES:
        _write_rows(target, known, indices, {known.value_name: values})
    else:
        _write(target, lambda stream: np.savez(stream, indices=indices, values=values))
    return f"values of shape {values.shape}: predicted, whether known or not"


def export_run(run_dir: str | Path, output: str | Path) -> str:
    """Write the run's best weights into the .pt file `output`, as a plain state dict; the run's data are not needed.

    Returns:
        What was written, for people.

    Raises:
        InputError: it is no run folder or has no checkpoint that can be used, or `output` is no .pt file in a folder
            that exists.
    """
    target = _checked_output(Path(output), (".pt",))
    _, checkpoint = find_run(run_dir)
    shapes = tensor_shapes(checkpoint)
    state = read_state(checkpoint)
    prefix = best_prefix(shapes, state)
    chosen = {name: spec for name, spec in shapes.items() if name.startswith(prefix)}
    weights = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in chosen.items()}
    load_tensors(checkpoint, weights)
    state_dict = {name.removeprefix(prefix): weight for name, weight in weights.items()}
    _write(target, lambda stream: torch.save(state_dict, stream))
    step = state["best_step"] if prefix == BEST else state["step"]
    num_numbers = sum(weight.numel() for weight in weights.values())
    return f"state dict of {len(weights)} tensors, {num_numbers} numbers; the best weights, those of step {step}"


def _asked(path: Path, known: Entries) -> np.ndarray:
    """(N, order) the entries that a file names."""
    with arguments_as_keys("--entries", path="--entries", source="--entries"):
        if path.suffix.lower() in (".npy", ".npz"):
            return read_indices(path, known.shape)
        from distsam.tasks.tables import read_labels

        return read_labels(path, modes_of(known))


def _write_completed(target: Path, known: Entries, prediction: np.ndarray) -> None:
    _write_rows(target, known, *completed_rows(known, prediction))


def completed_rows(known: Entries, prediction: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """A row for each entry of the tensor: (size, order) indices, and the columns value, prediction, known.

    Args:
        known: the entries that are known; their values are kept.
        prediction: of the tensor's shape.
    """
    values, is_known = prediction.reshape(-1).copy(), np.zeros(prediction.size, dtype=bool)
    positions = np.ravel_multi_index(tuple(known.indices.T), known.shape)
    values[positions], is_known[positions] = known.values, True
    indices = np.stack(np.unravel_index(np.arange(prediction.size), known.shape), axis=1)
    return indices, {known.value_name: values, "prediction": prediction.reshape(-1), "known": is_known}


def _write_rows(target: Path, known: Entries, indices: np.ndarray, columns: dict[str, np.ndarray]) -> None:
    from distsam.tasks.tables import write_table

    _write(target, lambda stream: write_table(stream, target.suffix, modes_of(known), indices, columns))


def modes_of(entries: Entries) -> tuple[Mode, ...]:
    """The labels of the tensor; where it came without, positions, in columns that count the modes."""
    unnamed = (Mode(f"mode_{k}", tuple(range(size))) for k, size in enumerate(entries.shape))
    return entries.modes or tuple(unnamed)


def _warn_of_bad(values: np.ndarray) -> None:
    num_bad = int((~np.isfinite(values)).sum())
    if num_bad:
        print(f"distsam: {num_bad} of the predicted values are no finite numbers: the run diverged", file=sys.stderr)


def _write(target: Path, content: Callable[[BinaryIO], object]) -> None:
    try:
        write_atomically(target, content)
    except OSError as error:
        raise InputError(f"--output: {target} cannot be written ({error.strerror}); choose another file") from None


def _checked_output(output: Path, suffixes: Sequence[str]) -> Path:
    if output.suffix not in suffixes:
        raise InputError(f"--output: {output} must end in {' or '.join(suffixes)}")
    if not output.parent.is_dir():
        raise InputError(f"--output: {output} cannot be written, because there is no folder {output.parent}")
    if output.is_dir() or not os.access(output.parent, os.W_OK):
        raise InputError(f"--output: {output} cannot be written; choose another file")
    return output
