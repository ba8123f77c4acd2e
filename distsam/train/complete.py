"""`distsam.complete`: a tensor with gaps in, the completed one out, within so many minutes and without a setting."""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from distsam.errors import ArgumentError, InputError
from distsam.runs.folder import RunFolder
from distsam.runs.study import StudyFolder
from distsam.runs.summary import Summary, read_summary
from distsam.tasks.entries import Entries
from distsam.tensornet import core_networks
from distsam.train.config import Config
from distsam.train.config_file import load_config
from distsam.train.predictions import completed_rows, modes_of
from distsam.train.saved_run import open_run
from distsam.train.studies.arms import as_overrides
from distsam.train.studies.jobs import Interrupted, Job, run_job
from distsam.train.studies.tuning import Tuning
from distsam.train.studies.tuning_plan import plan_tuning
from distsam.train.studies.work import INTERRUPTED, WorkerEnded, work_together

_CONFIGS = Path(__file__).parents[1] / "configs"
# The search gets most of the time; the last fit, to all that is known, what is left.
_SHARE_OF_SEARCH = 0.75
_MAX_WORKERS = 8
_SHOWN = ("network.format", "network.bond_dim", "network.ranks", "optim.method", "optim.lr", "optim.weight_decay")
_BALANCE = ("norm_deviation", "relative_deviation", "max_over_min")
# Steps between two evaluations of a small tensor, and the most of any.
_OFTEN, _RARELY = 25, 500
# So many entries choose the weights of the last fit, but no more than a tenth.
_CHOOSING = 1000
# What the search does not vary. One gradient a step leaves twice the time that SAM would: no method differs from plain
# Adam with weight decay beyond its interval in our comparisons.
_SETTINGS = ("optim.method=base", "optim.base=adam", "train.checkpoint_every=null")


@dataclass(frozen=True, eq=False, repr=False)
class Completion:
    """A completed tensor, and how far it can be trusted.

    Args:
        tensor: the data's shape; known entries as they were given, the others predicted.
        prediction: the same shape; what the network says everywhere.
        scores: on entries that neither training nor the search has seen, before the last fit took them in too:
            "heldout/r2", "heldout/rmse", "heldout/mae" and others.
        model: the network after the last fit.
        balance: "norm_deviation", "relative_deviation", "max_over_min" of its core norms.
        settings: dotted key -> value, of the network and how it was trained.
        run: folder of the run that the network is of, for `distsam.load`: the last fit's, or, where the time has cut
            that short, the search's best; None where `path` did not ask to keep it.
    """

    tensor: np.ndarray
    prediction: np.ndarray
    scores: dict[str, float | None]
    model: nn.Module
    balance: dict[str, float | None]
    settings: dict[str, Any]
    run: Path | None
    _entries: Entries

    def __repr__(self) -> str:
        r2 = self.scores.get("heldout/r2")
        return f"Completion of shape {self.tensor.shape}: held-out R2 {r2}, {self.settings}"

    def table(self) -> Any:
        """A pyarrow Table with a row for each entry: its labels, the value, `prediction`, `known`; see to_pandas()."""
        from distsam.tasks.tables import labelled_table

        return labelled_table(modes_of(self._entries), *completed_rows(self._entries, self.prediction))


def complete(
    data: Any,
    *,
    minutes: float = 2.0,
    seed: int = 0,
    workers: int | None = None,
    path: str | Path | None = None,
    progress: bool = True,
    settings: Sequence[str] = (),
) -> Completion:
    """Complete a tensor: search for a network and its training, then fit the best to all that is known.

    A tenth of the known entries is held out and gives the scores, a tenth of the others chooses; the last fit has all.

    Args:
        data: an array of any order with NaN where an entry is missing; or a data frame (pandas, polars, pyarrow) with a
            column of labels for each mode and one of values (needs `distsam[tables]`).
        minutes: wall time of all together; the last fit and the prediction may take some seconds more.
        seed: of what is held out, of starts and batches. The clock decides how much is tried: two calls may differ.
        workers: processes; None: one a CPU that this process may use, at most 8.
        path: folder to keep the runs in, for `distsam tune`, `report` and the rest; a temporary one without it.
        progress: whether to print a line for each run.
        settings: "section.key=value" for what is not to be left to the search, such as "optim.method=sam".

    Raises:
        InputError: the data cannot be used, or the time was too short for a single run.
    """
    began = time.monotonic()
    if not 0 < minutes < float("inf"):
        raise ArgumentError("minutes", f"{minutes!r} is no time; give some minutes")
    where = Path(path) if path is not None else Path(tempfile.mkdtemp(prefix="distsam-"))
    try:
        given, source = _saved(data, where)
        overrides = [*_SETTINGS, *source, f"run.seed={seed}", "data.observed=0.9", "data.validation=0.1"]
        overrides.append(f"train.log_every={_evaluated_every(_num_known(data))}")
        config = load_config(_CONFIGS / f"{given}.yaml", [*overrides, *settings])
        folder = StudyFolder(where / "search")
        # One seed: another one would split otherwise, and train on entries that the first holds out.
        plan_tuning(folder, config, {}, minutes=_SHARE_OF_SEARCH * minutes, num_seeds=1, fixed=_keys_of(settings))
        search = Tuning(folder)
        cores = len(os.sched_getaffinity(0))
        _search(search, workers or min(_MAX_WORKERS, cores), progress)
        facts = search.facts()
        (found,) = (folder.path / run for run in facts["best"]["runs"])
        left_s = max(5.0, 60 * minutes - (time.monotonic() - began))
        if progress:
            print(f"the last fit, to all that is known: {left_s:.0f} s at most", flush=True)
        last = _fit_all(folder, where / "fit", facts["best"], _num_known(data), left_s, cores) or found
        return _completion(last, _scores(_summary(found)), is_kept=path is not None)
    finally:
        if path is None:
            shutil.rmtree(where, ignore_errors=True)


def _saved(data: Any, folder: Path) -> tuple[str, list[str]]:
    """Write the data into the folder: the config that reads it, and its overrides."""
    folder.mkdir(parents=True, exist_ok=True)
    if _is_frame(data):
        from distsam.tasks.tables import save_frame

        save_frame(data, folder / "data.parquet")
        return "table", [f"data.path={json.dumps(str(folder / 'data.parquet'))}"]
    array = np.asarray(data)
    if array.dtype.kind not in "fiub" or array.ndim < 2:
        raise ArgumentError(
            "data", f"an array of {array.dtype} of shape {array.shape} is no tensor of numbers with two modes or more"
        )
    np.save(folder / "data.npy", array.astype(np.float64))
    return "file", [f"data.path={json.dumps(str(folder / 'data.npy'))}"]


def _keys_of(settings: Sequence[str]) -> set[str]:
    return {setting.partition("=")[0] for setting in settings}


def _num_known(data: Any) -> int:
    """About how many entries are known: of a data frame its rows."""
    return len(data) if _is_frame(data) else int(np.isfinite(np.asarray(data, dtype=np.float64)).sum())


def _evaluated_every(num_known: int) -> int:
    """Steps between two evaluations, so that these, one pass forward over all entries, take a tenth of the time.

    A step is a pass forward and about two backward over a batch. On a large tensor its loss is noisy, and a longer wait
    between two evaluations also keeps early stopping, which counts them, from ending a run that still improves.
    """
    from distsam.tasks.auto import batch_for

    batch = batch_for(num_known) or max(1, num_known)
    steps = num_known / (0.1 * 3 * batch)
    return min(_RARELY, max(_OFTEN, _OFTEN * round(steps / _OFTEN)))


def _is_frame(data: Any) -> bool:
    return hasattr(data, "__arrow_c_stream__") or hasattr(data, "columns")


def _summary(run: Path) -> Summary:
    summary = read_summary(RunFolder(run).summary)
    assert summary is not None, run  # only runs that have ended are among the best
    return summary


def _scores(found: Summary) -> dict[str, float | None]:
    return {key: value for key, value in found.numbers.items() if key.partition("/")[0] in ("heldout", "validation")}


def _search(search: Tuning, workers: int, progress: bool) -> None:
    try:
        work_together(search, workers, print if progress else None)
    except Interrupted:
        raise KeyboardInterrupt from None
    except WorkerEnded as end:
        if end.code == INTERRUPTED:
            raise KeyboardInterrupt from None
        raise InputError(f"data: {end}; its message above says why") from None


def _fit_all(
    folder: StudyFolder, run: Path, best: Mapping[str, Any], num_known: int, left_s: float, threads: int
) -> Path | None:
    """Fit the best setting to what the search had held out, too; None where that comes to nothing better.

    A few entries still choose the weights: the last step's are noisy where steps take some of the entries, and on few
    entries training goes past its best.
    """
    apart = min(0.1, max(0.02, _CHOOSING / num_known))
    more = ("data.observed=1.0", f"data.validation={apart:.3f}", f"train.max_seconds={left_s:.1f}")
    here = (f"train.num_threads={threads}", "train.refit=false")
    steps = load_config(folder.base).train.steps
    overrides = (*as_overrides(best["settings"]), *more, *here)
    found = _summary(folder.path / best["runs"][0])
    ended = run_job(folder, Job(run, overrides, "the last fit, to all that is known", steps))
    return run if ended.summary is not None and not _is_cut_short(ended.summary, found) else None


def _is_cut_short(last: Summary, found: Summary) -> bool:
    """Whether the time has ended the last fit before it was as good as the one that the search found."""
    r2, before = last.numbers.get("validation/r2"), found.numbers.get("validation/r2")
    return last.stopped_by == "time limit" and r2 is not None and before is not None and r2 < before


def _settings_of(config: Config) -> dict[str, Any]:
    """The keys that a search varies, with what they were in the end."""
    content = config.model_dump()
    found = {key: content[key.partition(".")[0]].get(key.partition(".")[2]) for key in _SHOWN}
    return {key: value for key, value in found.items() if value is not None}


def _completion(run: Path, scores: dict[str, float | None], is_kept: bool) -> Completion:
    saved = open_run(run)
    task: Any = saved.task
    prediction = task.fill(saved.model, keep_known=False)
    tensor = prediction.copy()
    tensor[tuple(task.entries.indices.T)] = task.entries.values
    (network,) = core_networks(saved.model)
    prefix = f"balance/{network.name}/"
    balance = {
        key.removeprefix(prefix): value
        for key, value in _summary(run).numbers.items()
        if key.removeprefix(prefix) in _BALANCE
    }
    kept = run if is_kept else None
    return Completion(tensor, prediction, scores, saved.model, balance, _settings_of(saved.config), kept, task.entries)
