"""A second fit in a folder of its own: to all that is not held out, for as many steps as validation found best."""

import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from distsam.errors import InputError, RunIncomplete
from distsam.runs.folder import RunFolder
from distsam.runs.lock import RunLock
from distsam.runs.summary import Number, Summary
from distsam.train import parts
from distsam.train.agreement import agreed, from_first_rank
from distsam.train.config import Config
from distsam.train.config_file import read_yaml
from distsam.train.settled import with_values

REFIT = "refit"
# A fit that was ended by anything else goes on first.
_WHOLE = ("last step", "early stopping")


def plan_refit(config: Config, summary: Summary, is_whole: bool, is_first: bool) -> Config | None:
    """The config of the second fit, with its folder ready for it; None where there is to be none.

    Args:
        config: of the first fit.
        summary: of the first fit, on rank 0.
        is_whole: whether all of it could be written, on rank 0.
        is_first: whether this is rank 0.

    Collectives: one object broadcast and one gather over the world where `train.refit` is set; every rank calls it.

    Raises:
        InputError: what an older second fit has left cannot be put away.
    """
    if not config.train.refit:
        return None
    asked = summary.best_step if is_whole and summary.stopped_by in _WHOLE else None
    if is_first and summary.stopped_by == "time limit":
        # It did not come to the steps that validation would have chosen, and a second fit would take as long again.
        print("distsam: train.refit: not done, because train.max_seconds ended the fit", file=sys.stderr)
    steps = from_first_rank(lambda: asked)
    if not steps:
        return None
    again = _config_of(config, steps)
    agreed(lambda: _put_away_older(again) if is_first else None)
    return again


def merged(first: Summary, again: Summary) -> Summary:
    """The summary of the first fit with the scores and the balance of the second.

    The scores by which weights were chosen stay, as "before_refit/<part>/<column>". Merging twice changes nothing.
    """
    return replace(
        first,
        weights=REFIT,
        numbers={**again.numbers, **_numbers_before(first)},
        more={**first.more, "balance_step": again.steps, "refit_wall_s": again.wall_s},
    )


def write_merged(folder: RunFolder, summary: Summary, locks: list[RunLock]) -> None:
    """Replace the summary of the first fit, on rank 0, which holds the lock of its folder.

    Raises:
        RunIncomplete: it cannot be written.
    """
    if not locks:
        return
    problem = None if locks[0].is_held() else "the run folder was moved or deleted"
    try:
        if problem is None:
            summary.write(folder.summary)
    except OSError as error:
        problem = error.strerror
    if problem is not None:
        raise RunIncomplete(f"{folder.summary}: cannot be written ({problem})", summary)


def _numbers_before(first: Summary) -> Mapping[str, Number]:
    prefix = f"before_{REFIT}/"
    if first.weights == REFIT:
        return {key: value for key, value in first.numbers.items() if key.startswith(prefix)}
    columns = () if first.goal is None else first.goal.columns
    scores = {key: value for key, value in first.numbers.items() if key.count("/") == 1}
    return {prefix + key: value for key, value in scores.items() if key.rpartition("/")[2] in columns}


def _config_of(config: Config, steps: int) -> Config:
    keys = parts.TASKS.chosen(config.task).refit
    assert keys is not None, "validation refuses train.refit for other tasks"
    values: dict[str, Any] = {
        **keys(),
        "run.dir": str(RunFolder(Path(config.run.dir)).refit),
        "train.steps": steps,
        "train.refit": False,
        # It has its steps, and takes no longer than the first fit did.
        "train.max_seconds": None,
        # It is begun where it is not there, and gone on with where it is.
        "train.resume": "auto",
    }
    for key, given in config.optim:
        if key.endswith("warmup_steps"):  # it must end within the run
            values[f"optim.{key}"] = min(given, steps - 1)
    return with_values(config, values)


def _put_away_older(again: Config) -> None:
    """Remove a second fit that belongs to an earlier end of the first, or to other rates than those of now."""
    folder = RunFolder(Path(again.run.dir))
    doomed = folder.path.with_name(folder.path.name + ".old")
    try:
        if doomed.exists():
            shutil.rmtree(doomed)
        if folder.path.exists() and not _is_of(folder, again):
            # Renamed first: a kill half way must not leave a part that looks whole.
            folder.path.rename(doomed)
            shutil.rmtree(doomed)
    except OSError as error:
        raise InputError(f"train.refit: {error.filename or folder.path} cannot be removed ({error.strerror})") from None


def _is_of(folder: RunFolder, again: Config) -> bool:
    try:
        saved = read_yaml(folder.config)
    except InputError:
        return False
    steps = saved["train"].get("steps") if isinstance(saved.get("train"), dict) else None
    return steps == again.train.steps and saved.get("optim") == again.optim.model_dump()
