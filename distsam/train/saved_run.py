"""A run that is over, opened again in one process: its scores and its predictions."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from distsam.errors import InputError
from distsam.runs.atomic import write_atomically
from distsam.runs.checkpoints import finished_checkpoints
from distsam.runs.folder import RunFolder
from distsam.sharding import Layout
from distsam.tasks.files import read_indices
from distsam.tasks.task import Scores, Task, identity
from distsam.train import parts
from distsam.train.build import build_model, build_task
from distsam.train.checkpoint_reader import load_tensors, read_state, tensor_shapes
from distsam.train.config import Config
from distsam.train.config_file import load_config
from distsam.train.keys_of_arguments import arguments_as_keys
from distsam.train.loop import evaluated
from distsam.train.run_state import BEST, MODEL, model_tensors


@dataclass(frozen=True, eq=False)
class SavedRun:
    """The task of a run and its model with the best weights, whole, in this process."""

    config: Config
    task: Task
    model: nn.Module


def open_run(run_dir: str | Path) -> SavedRun:
    """Open the run in `run_dir`, whatever number of processes it ran in.

    Raises:
        InputError: it is no run folder, has no finished checkpoint, or its data is no longer there or no longer the
            same: then the split is another, and values that were fitted would be scored as held out.
    """
    folder = RunFolder(Path(run_dir))
    if not folder.config.is_file():
        raise InputError(f"{run_dir}: is no run folder (it has no config.yaml); give the run.dir of a run")
    checkpoints = finished_checkpoints(folder.checkpoints)
    if not checkpoints:
        raise InputError(f"{run_dir}: has no finished checkpoint; train it first, or set train.resume=auto")
    config, state = load_config(folder.config), read_state(checkpoints[-1])
    use_gpu = torch.cuda.is_available() and config.sharding.device != "cpu"
    task = build_task(config, Layout.alone("cuda" if use_gpu else "cpu"))
    _check_data(config, task, state["data_sha256"], folder)
    model = build_model(config, task)
    has_best = any(name.startswith(BEST) for name in tensor_shapes(checkpoints[-1]))
    prefix = BEST if has_best and not state["last_is_best"] else MODEL
    load_tensors(checkpoints[-1], {prefix + name: tensor for name, tensor in model_tensors(model).items()})
    model.eval()
    return SavedRun(config, task, model)


def evaluate_run(run_dir: str | Path) -> Scores:
    """The scores of the run's best weights, as in its summary.json."""
    run = open_run(run_dir)
    return evaluated(run.task, run.model)


def predict_run(run_dir: str | Path, output: str | Path, entries: str | Path | None = None) -> str:
    """Write what the run's best weights predict into the .npz file `output`.

    Args:
        entries: .npy or .npz file with the (N, order) indices to predict, written as `indices` and `values`; the
            whole tensor when None: `tensor` has known entries as they are known and the others predicted,
            `prediction` has what the network says everywhere.

    Returns:
        What was written, for people.

    Raises:
        InputError: see `open_run`; or `output` is no .npz file in a folder that exists, an index is outside, or the
            task of the run predicts no tensor.
    """
    target = _checked_output(Path(output))
    run = open_run(run_dir)
    task: Any = run.task
    if not all(hasattr(task, member) for member in ("fill", "predict", "entries")):
        kind = run.config.task.kind
        raise InputError(f"{run_dir}: is a run of task.kind={kind}, which completes no tensor: nothing to predict")
    if entries is None:
        prediction = task.fill(run.model, keep_known=False)
        tensor, known = prediction.copy(), task.entries
        tensor[tuple(known.indices.T)] = known.values
        write_atomically(target, lambda stream: np.savez(stream, tensor=tensor, prediction=prediction))
        num_known = len(known.values)
        return f"tensor of shape {tensor.shape}: {num_known} known entries kept, {tensor.size - num_known} predicted"
    with arguments_as_keys("--entries", path="--entries"):
        indices = read_indices(entries, task.entries.shape)
    values = task.predict(run.model, indices)
    write_atomically(target, lambda stream: np.savez(stream, indices=indices, values=values))
    return f"values of shape {values.shape}: predicted, whether known or not"


def _check_data(config: Config, task: Task, sha256: str, folder: RunFolder) -> None:
    if identity(task) == sha256:
        return
    key, given = parts.TASKS.chosen(config.task).origin(config)
    raise InputError(
        f"{key}: {given} has changed since the run in {folder.path}; give back the data of that run "
        "(its summary.json names the versions that gave them)"
    )


def _checked_output(output: Path) -> Path:
    if output.suffix != ".npz":
        raise InputError(f"--output: {output} must end in .npz")
    if not output.parent.is_dir():
        raise InputError(f"--output: {output} cannot be written, because there is no folder {output.parent}")
    if output.is_dir() or not os.access(output.parent, os.W_OK):
        raise InputError(f"--output: {output} cannot be written; choose another file")
    return output
