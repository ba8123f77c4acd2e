"""One run from its config to its summary."""

import hashlib
import json
import math
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import distsam
from distsam.errors import InputError
from distsam.sharding import close_world, open_world
from distsam.sharding.collectives import barrier
from distsam.tasks.entries import Entries
from distsam.train.build import Job, Problem, build_job, build_problem
from distsam.train.checkpoint import Checkpointer
from distsam.train.checkpoint_reader import read_facts, tensor_shapes
from distsam.train.config import Config
from distsam.train.config_file import to_yaml
from distsam.train.loop import LoopState, TrainingLoop
from distsam.train.progress import TrainingProgress
from distsam.train.run_folder import RunFolder, check_folder, fingerprint, write_atomically
from distsam.train.run_state import make_room, put_weights, run_tensors
from distsam.train.stop_signals import StopSignals
from distsam.train.tracking import MetricsFile, Row, WandbMirror


def run_training(config: Config) -> dict[str, Any]:
    """Train as `config` says, alone or as one rank of the world that torchrun or srun describes.

    Returns:
        What summary.json holds, the same on every rank but for `stopped_by`.

    Collectives: opens and closes the default process group; every rank calls it with the same config.

    Raises:
        InputError: something in the config cannot be used; nothing was written then.
        TrainingDiverged: too many non-finite steps in a row.
    """
    if config.train.num_threads is not None:
        torch.set_num_threads(config.train.num_threads)
    folder = RunFolder(Path(config.run.dir))
    problem = build_problem(config)
    check_folder(folder, config)
    world = open_world(config.sharding.device)
    try:
        job = build_job(config, problem, world)
        # All ranks have looked at the folder and built what they need: from here on it may change.
        barrier()
        return _Run(config, folder, problem, job).train()
    finally:
        close_world()


class _Run:
    """The parts of a run that is under way, tied to its folder."""

    def __init__(self, config: Config, folder: RunFolder, problem: Problem, job: Job) -> None:
        self.config = config
        self.folder = folder
        self.job = job
        self.is_first = job.world.rank == 0
        self.identity = {"fingerprint": fingerprint(config), "data_sha256": _data_sha256(problem.entries)}
        if self.is_first:
            folder.path.mkdir(parents=True, exist_ok=True)
        self.checkpointer = Checkpointer(folder.checkpoints, config.train.keep_checkpoints, job.world.rank)
        self.state = LoopState()
        self._resume()
        if self.is_first:
            write_atomically(folder.config, to_yaml(config))

    def train(self) -> dict[str, Any]:
        """Run the loop and write what remains of it."""
        metrics = MetricsFile(self.folder.metrics, self.state.step) if self.is_first else None
        wandb = self._open_wandb()
        progress = TrainingProgress(self.config.train.steps, self.state.step, shown=self.is_first)

        def write_row(row: Row) -> None:
            if metrics is not None:
                metrics.log(row)
            wandb.log(row)
            progress.show(row)

        loop = TrainingLoop(
            self.job,
            self.config.train,
            self.state,
            save=lambda: self._save(loop.elapsed_s),
            poll=self.checkpointer.poll,
            write_row=write_row,
            tick=progress.tick,
        )
        try:
            with StopSignals(self.job.optimizer.request_stop) as signals:
                loop.run()
                self._save(loop.elapsed_s)
                self.checkpointer.wait()
                summary = self._summarise(loop, signals)
        finally:
            progress.close()
            if metrics is not None:
                metrics.close()
            wandb.close()
        return summary

    def _resume(self) -> None:
        newest = self.checkpointer.newest() if self.config.train.resume == "auto" else None
        if newest is None:
            return
        facts = read_facts(newest)
        for name, value in self.identity.items():
            if facts.get(name) != value:
                what = "other data" if name == "data_sha256" else "another model"
                raise InputError(f"{newest}: is a checkpoint of {what}; choose another run.dir")
        if facts["step"] > self.config.train.steps:
            raise InputError(
                f"train.steps: {self.config.train.steps} is less than the {facts['step']} steps that the run in "
                f"{self.folder.path} has done; give at least that"
            )
        best, optimizer = self.state.best, self.job.optimizer
        room = make_room(self.job.model, optimizer.base_optimizer, best, tensor_shapes(newest))
        self.checkpointer.load(newest, room)
        optimizer.load_counters(facts["counters"])
        self.state.step, self.state.elapsed_s = facts["step"], facts["elapsed_s"]
        best.value, best.step, best.num_stale = facts["best_value"], facts["best_step"], facts["num_stale"]

    def _save(self, elapsed_s: float) -> None:
        best = self.state.best
        facts = {
            **self.identity,
            "counters": self.job.optimizer.counters(),
            "best_value": best.value,
            "best_step": best.step,
            "num_stale": best.num_stale,
            "elapsed_s": elapsed_s,
            "world_size": self.job.world.world_size,
            "versions": _versions(),
        }
        tensors = run_tensors(self.job.model, self.job.optimizer.base_optimizer, best)
        self.checkpointer.save(self.state.step, tensors, facts)

    def _summarise(self, loop: TrainingLoop, signals: StopSignals) -> dict[str, Any]:
        """Scores of the last and of the best weights, and what the run was. Collective: every rank calls it."""
        best = self.state.best
        last = final = loop.score()
        if best.tensors:
            put_weights(self.job.model, best.tensors)
            final = self.job.task.evaluate(self.job.model)
        summary = {
            **final,
            **{f"last/{key}": value for key, value in last.items()},
            **loop.balance,
            "weights": "best" if best.tensors else "last",
            "best_step": best.step,
            "steps": self.state.step,
            "stopped_by": signals.received or self._reason(loop),
            "world_size": self.job.world.world_size,
            "wall_s": loop.elapsed_s,
            "num_parameters": self.job.model.spec.num_parameters,
            "device": str(self.job.world.device),
            "sharding": self.job.plan.describe(),
            "versions": _versions(),
            **self.identity,
        }
        if self.is_first:
            write_atomically(self.folder.summary, json.dumps(_without_nan(summary), indent=1) + "\n")
        return summary

    def _reason(self, loop: TrainingLoop) -> str:
        if self.state.step >= self.config.train.steps:
            return "last step"
        return "early stopping" if loop.stopped_early else "a signal to another rank"

    def _open_wandb(self) -> WandbMirror:
        wandb = self.config.wandb
        return WandbMirror(
            wandb.mode if self.is_first else "disabled",
            self.folder.path,
            project=wandb.project,
            name=wandb.name,
            group=wandb.group,
            config=self.config.model_dump(),
        )


def _data_sha256(entries: Entries) -> str:
    digest = hashlib.sha256(repr(entries.shape).encode())
    digest.update(entries.indices.tobytes())
    digest.update(entries.values.tobytes())
    return digest.hexdigest()


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "distsam": distsam.__version__,
    }


def _without_nan(summary: Mapping[str, Any]) -> dict[str, Any]:
    def clean(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return {key: clean(value) for key, value in summary.items()}
