"""A run that is over, opened again in one process: its scores and its predictions."""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from distsam.engine import model_tensors
from distsam.errors import InputError
from distsam.runs.checkpoints import damage, published_checkpoints
from distsam.runs.folder import RunFolder
from distsam.runs.summary import read_summary
from distsam.sharding import Layout
from distsam.tasks.task import Scores, Task, identity
from distsam.train import parts
from distsam.train.build import build_model, build_task
from distsam.train.checkpoint_reader import load_tensors, read_state, tensor_shapes
from distsam.train.config import Config
from distsam.train.config_file import load_config, read_yaml
from distsam.train.frozen import FROZEN, frozen_identity
from distsam.train.loop import evaluated
from distsam.train.refit import REFIT
from distsam.train.run_state import BEST, MODEL
from distsam.train.same_run import MOVABLE_KEYS, fingerprint


@dataclass(frozen=True, eq=False)
class SavedRun:
    """The task of a run and its model with the best weights, whole, in this process."""

    config: Config
    task: Task
    model: nn.Module


def open_run(run_dir: str | Path, overrides: Sequence[str] = ()) -> SavedRun:
    """Open the run in `run_dir`, whatever number of processes it ran in.

    Args:
        run_dir: its folder.
        overrides: where its data lie now, as data.path=FILE. Without it, a file that is no longer where it was is
            looked for beside the run folder and in it.

    Raises:
        InputError: it is no run folder, has no finished checkpoint, or its data is no longer there or no longer the
            same: then the split is another, and values that were fitted would be scored as held out.
    """
    folder, checkpoint = find_run(run_dir)
    for override in overrides:
        if override.partition("=")[0] not in MOVABLE_KEYS:
            raise InputError(f"{override}: cannot be changed now; only {', '.join(MOVABLE_KEYS)} can")
    moved = overrides or _moved(run_folder(run_dir))
    config, state = load_config(folder.config, moved), read_state(checkpoint)
    if fingerprint(config) != state["fingerprint"]:
        # With another split or scaling the scores would be wrong, and nothing would say so.
        raise InputError(
            f"{folder.config}: is not the config that {checkpoint} was trained by: somebody has changed it; give back "
            "the file as it was"
        )
    use_gpu = torch.cuda.is_available() and config.sharding.device != "cpu"
    with _saying_what_moved(config):
        task = build_task(config, Layout.alone("cuda" if use_gpu else "cpu"))
    _check_data(config, task, state["data_sha256"], folder)
    with _saying_what_moved(config):
        model = build_model(config, task)
    if frozen_identity(model).get(FROZEN) != state.get(FROZEN):
        raise InputError(
            f"{folder.path}: the model's frozen weights are not those that it was trained with, and no checkpoint "
            "holds those; give back the model of that run"
        )
    prefix = best_prefix(tensor_shapes(checkpoint), state)
    load_tensors(checkpoint, {prefix + name: tensor for name, tensor in model_tensors(model).items()})
    model.eval()
    return SavedRun(config, task, model)


def evaluate_run(run_dir: str | Path, overrides: Sequence[str] = ()) -> Scores:
    """The scores of the run's best weights, as in its summary.json; see `open_run`."""
    run = open_run(run_dir, overrides)
    return evaluated(run.task, run.model)


def find_run(run_dir: str | Path) -> tuple[RunFolder, Path]:
    """The folder whose weights count, and its newest checkpoint that can be used.

    That is the run folder, or within it that of the second fit, once the summary has its scores.
    """
    folder = run_folder(run_dir)
    summary = read_summary(folder.summary)
    if summary is not None and summary.weights == REFIT:
        folder = run_folder(folder.refit)
    return folder, _newest(folder)


def run_folder(run_dir: str | Path) -> RunFolder:
    """The run folder; InputError if it is none."""
    folder = RunFolder(Path(run_dir))
    if not folder.is_run():
        raise InputError(f"{run_dir}: is no run folder (it has no config.yaml); give the run.dir of a run")
    return folder


def best_prefix(names: Iterable[str], state: Mapping[str, Any]) -> str:
    """What the names of the best weights begin with in a checkpoint."""
    has_best = any(name.startswith(BEST) for name in names)
    return BEST if has_best and not state["last_is_best"] else MODEL


def _moved(folder: RunFolder) -> list[str]:
    """The override that finds a data file that was moved together with its run; none where it is in its place.

    That it is the same file, its sha256 will say.
    """
    data = read_yaml(folder.config).get("data")
    path = data.get("path") if isinstance(data, dict) else None
    if not isinstance(path, str) or Path(path).exists():
        return []
    beside = (place / Path(path).name for place in (folder.path.absolute().parent, folder.path.absolute()))
    return [f"data.path={json.dumps(str(found))}" for found in beside if found.is_file()][:1]


@contextmanager
def _saying_what_moved(config: Config) -> Iterator[None]:
    """Adds to an InputError which key says where a file lies now, if it is no longer where it was."""
    try:
        yield
    except InputError as error:
        for key in MOVABLE_KEYS:
            section, _, name = key.partition(".")
            path = getattr(getattr(config, section, None), name, None)
            if path is not None and not Path(path).exists():
                raise InputError(f"{error}; {key}=FILE says where it lies now") from None
        raise


def _newest(folder: RunFolder) -> Path:
    """The newest checkpoint that is what was written; says so where it is not the newest of all."""
    for path in reversed(published_checkpoints(folder.checkpoints)):
        problem = damage(path)
        if problem is None:
            return path
        print(f"distsam: {path}: is damaged and not used: {problem}", file=sys.stderr, flush=True)
    raise InputError(f"{folder.path}: has no checkpoint that can be used; train it, with train.resume=auto to go on")


def _check_data(config: Config, task: Task, sha256: str, folder: RunFolder) -> None:
    if identity(task) == sha256:
        return
    key, given = parts.TASKS.chosen(config.task).origin(config)
    raise InputError(
        f"{key}: {given} has changed since the run in {folder.path}; give back the data of that run "
        "(its summary.json names the versions that gave them)"
    )
