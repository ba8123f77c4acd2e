"""One run of a study: what it is, whether it is over, and how one of the processes that share the work does it."""

import contextlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TextIO

import torch

from distsam.errors import ArgumentError, InputError, TrainingDiverged
from distsam.runs.atomic import write_atomically
from distsam.runs.checkpoints import finished_checkpoints
from distsam.runs.folder import RunFolder
from distsam.runs.lock import RunLock
from distsam.runs.rows import STEP, read_rows
from distsam.runs.study import StudyFolder
from distsam.runs.summary import Summary, read_summary
from distsam.train.checkpoint_reader import read_state
from distsam.train.config_file import load_config
from distsam.train.run import run_training

# How a run ends that has done all that it was to do.
_ENDS = ("last step", "early stopping", "time limit")
_DIVERGED = "diverged"


class Interrupted(Exception):
    """A run of the study was stopped by a signal; its state is saved."""


@dataclass(frozen=True)
class Job:
    """One run of a study.

    Args:
        folder: its run folder.
        overrides: of the study's base config, as `load_config` takes them.
        steps: of the whole run; where it has done as many already, there is nothing to do.
        label: for people.
    """

    folder: Path
    overrides: tuple[str, ...]
    label: str
    steps: int


@dataclass(frozen=True)
class Outcome:
    """What a job came to; `summary` is None where the run diverged."""

    summary: Summary | None

    def score(self, key: str) -> float:
        """The score of this name; nan where there is none, or it is no finite number."""
        value = None if self.summary is None else self.summary.numbers.get(key)
        return float(value) if value is not None and math.isfinite(value) else math.nan


def outcome(job: Job) -> Outcome | None:
    """What the job came to; None while it has not ended."""
    if job.steps >= _diverged_at(job):
        return Outcome(None)
    summary = read_summary(RunFolder(job.folder).summary)
    if summary is None or summary.stopped_by not in _ENDS:
        return None
    # A run that is to go on further than it has: ended early, it has no further to go.
    is_whole = summary.steps >= job.steps or summary.stopped_by != "last step"
    return Outcome(summary) if is_whole else None


def score_until(job: Job, key: str, higher_is_better: bool) -> float:
    """The best score of this name until `job.steps`, also where the run has gone on since; nan where there is none.

    Weights are chosen as a run goes along: this is what its summary said when it had done so many steps.
    """
    metrics = RunFolder(job.folder).metrics
    rows = read_rows(metrics) if metrics.exists() else []
    values = [row.get(key) for row in rows if row[STEP] <= job.steps]
    known = [float(value) for value in values if value is not None and math.isfinite(value)]
    choose = max if higher_is_better else min
    return choose(known, default=math.nan)


def trained_s(job: Job) -> float:
    """Seconds that the run had taken when its newest checkpoint was written, from which it goes on."""
    for checkpoint in reversed(finished_checkpoints(RunFolder(job.folder).checkpoints)):
        with contextlib.suppress(InputError, OSError, KeyError):
            return float(read_state(checkpoint)["elapsed_s"])
    return 0.0


def refuse(job: Job, why: str) -> Outcome:
    """Set down that the job's setting cannot be trained, so that it is not tried again."""
    job.folder.mkdir(parents=True, exist_ok=True)
    return _diverged(job, why)


@contextlib.contextmanager
def claimed(study: StudyFolder, job: Job) -> Iterator[bool]:
    """Hold the job while another process of the study may look for work too; False if another one holds it."""
    # The name of a claim says nothing: a path made into a name could be too long for one.
    name = sha256(str(job.folder.relative_to(study.path)).encode()).hexdigest()[:24]
    try:
        lock = RunLock(study.claims / name)
    except ArgumentError:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def run_job(study: StudyFolder, job: Job) -> Outcome:
    """Train the job to its end, from wherever it was left; what it prints goes to the study's log.

    Raises:
        InputError: it cannot be trained.
        Interrupted: a signal stopped it.
    """
    overrides = [*job.overrides, f"run.dir={json.dumps(str(job.folder))}", "train.resume=auto"]
    config = load_config(study.base, overrides)
    if config.train.num_threads is None:
        # The same sums, whatever the machine and the number of workers.
        config = config.model_copy(update={"train": config.train.model_copy(update={"num_threads": 1})})
    with study.log.open("a", encoding="utf-8", errors="replace") as log, _into(log), _own_threads():
        print(f"--- {job.label}", file=log)
        try:
            summary = run_training(config)
        except TrainingDiverged as error:
            print(f"distsam: {error}", file=log)
            return _diverged(job, str(error))
    if summary.stopped_by not in _ENDS:
        raise Interrupted(summary.stopped_by)
    return Outcome(summary)


def _diverged(job: Job, why: str) -> Outcome:
    # With the steps: what it came to in fewer stays.
    write_atomically(job.folder / f"{_DIVERGED}.json", json.dumps({"why": why, "steps": job.steps}) + "\n")
    return Outcome(None)


def _diverged_at(job: Job) -> float:
    """Steps of the shortest run of this setting that diverged; infinity where none has."""
    file = job.folder / f"{_DIVERGED}.json"
    try:
        return float(json.loads(file.read_bytes())["steps"])
    except FileNotFoundError:
        return math.inf
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0


@contextlib.contextmanager
def _into(log: TextIO) -> Iterator[None]:
    with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        yield


@contextlib.contextmanager
def _own_threads() -> Iterator[None]:
    """Give back the number of threads that this process had: it may be somebody's notebook."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def one_line(error: InputError, label: str) -> InputError:
    """The same mistake, with the run that it was found in."""
    return InputError(f"{label}: {' '.join(str(error).split())}")
