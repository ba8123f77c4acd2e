"""A run folder in Python: what was run, how it went, and the network that came of it."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from distsam.runs.rows import Row, read_rows
from distsam.runs.summary import read_summary
from distsam.tasks.task import Task
from distsam.train.config import Config
from distsam.train.config_file import load_config
from distsam.train.saved_run import SavedRun, open_run, run_folder


@dataclass(frozen=True, eq=False, repr=False)
class Run:
    """One run folder.

    Args:
        path: the folder.
        config: as it was run, every default filled in: `run.config.optim.rho`.
        rows: one a logged step, by name: `[row["validation/r2"] for row in run.rows]`.
        summary: what summary.json holds; empty while the run has not ended.
    """

    path: Path
    config: Config
    rows: list[Row]
    summary: dict[str, Any]

    def __repr__(self) -> str:
        return f"Run in {self.path}: {len(self.rows)} rows, {'over' if self.summary else 'without a summary'}"

    @property
    def model(self) -> nn.Module:
        """The network with the best weights, whole, in evaluation mode; needs the data of the run (see `load`)."""
        return self._saved.model

    @property
    def task(self) -> Task:
        """The task of the run, which scores and, for a completion, predicts: `run.task.predict(run.model, indices)`."""
        return self._saved.task

    @cached_property
    def _saved(self) -> SavedRun:
        return open_run(self.path)


def load(run_dir: str | Path) -> Run:
    """The run in this folder, also one that still goes on or was damaged: the rows that are there are read.

    Weights are read only when `model` or `task` is asked for. They need the run's data where they were, or beside the
    folder, as `distsam evaluate` does.

    Raises:
        InputError: it is no run folder, or its config cannot be read.
    """
    folder = run_folder(run_dir)
    rows = read_rows(folder.metrics) if folder.metrics.exists() else []
    summary = read_summary(folder.summary)
    return Run(folder.path, load_config(folder.config), rows, {} if summary is None else summary.as_json())
