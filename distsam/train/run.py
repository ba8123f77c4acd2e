"""One run from its config to its summary."""

import sys
from pathlib import Path
from typing import Any

import torch

from distsam.errors import InputError, TrainingDiverged
from distsam.runs.checkpoints import damaged_checkpoints
from distsam.runs.folder import RunFolder
from distsam.runs.rows import Row
from distsam.runs.summary import SavedGoal, SavedNetwork, Summary, read_summary
from distsam.sharding import World, close_world, open_world
from distsam.train.agreement import agreed, from_first_rank
from distsam.train.build import Job, Problem, build_job, build_problem
from distsam.train.checkpoint import Checkpointer
from distsam.train.checkpoint_reader import read_facts, tensor_shapes
from distsam.train.config import Config
from distsam.train.config_file import to_yaml
from distsam.train.loop import LoopState, TrainingLoop
from distsam.train.opening import describe_run, doubts
from distsam.train.progress import TrainingProgress
from distsam.train.run_state import make_room, put_weights, run_tensors
from distsam.train.same_run import check_folder, claim_folder, fingerprint
from distsam.train.stop_signals import StopSignals
from distsam.train.trackers.jsonl import JsonlTracker
from distsam.train.trackers.tracker import TrackerGroup
from distsam.train.trackers.wandb import WandbTracker
from distsam.train.versions import versions

_GOAL = SavedGoal(
    key="validation/r2",
    higher_is_better=True,
    columns=("r2", "r2_uncentred", "rmse", "mae"),
    headline=(("held-out R2", "heldout/r2"), ("held-out RMSE", "heldout/rmse")),
)


def run_training(config: Config) -> Summary:
    """Train as `config` says, alone or as one rank of the world that torchrun or srun describes.

    Returns:
        What summary.json holds, the same on every rank but for `stopped_by`.

    Collectives: opens and closes the default process group; every rank calls it with the same config.

    Raises:
        InputError: something in the config cannot be used; nothing was written then.
        TrainingDiverged: too many non-finite steps in a row; the last finite weights are saved.
        CheckpointFailed: a checkpoint could not be written.
    """
    if config.train.num_threads is not None:
        torch.set_num_threads(config.train.num_threads)
    folder = RunFolder(Path(config.run.dir))
    world = open_world(config.sharding.device)
    try:
        problem = agreed(lambda: _find_problem(config, folder))
        # All ranks have looked at the folder: from here on it may change.
        identity = _identify(config, problem)
        job = agreed(lambda: _start_job(config, folder, problem, world))
        return _Run(config, folder, problem, job, identity).train()
    finally:
        close_world()


def _find_problem(config: Config, folder: RunFolder) -> Problem:
    problem = build_problem(config)
    check_folder(folder, config)
    return problem


def _identify(config: Config, problem: Problem) -> dict[str, str]:
    """What makes this training the one that it is, as rank 0 has it; every rank must have the same data.

    Machines with disks of their own can hold other files under the same name.
    """
    own = problem.entries.sha256()
    identity = from_first_rank(lambda: {"fingerprint": fingerprint(config), "data_sha256": own})

    def check() -> None:
        if own != identity["data_sha256"]:
            key, given = ("path", config.data.path) if config.data.path else ("source", config.data.source)
            raise InputError(f"data.{key}: {given} holds other data than on rank 0; give every rank the same")

    agreed(check)
    return identity


def _start_job(config: Config, folder: RunFolder, problem: Problem, world: World) -> Job:
    job = build_job(config, problem, world)
    if world.rank == 0:
        claim_folder(folder, config)
    return job


class _Run:
    """The parts of a run that is under way, tied to its folder."""

    def __init__(self, config: Config, folder: RunFolder, problem: Problem, job: Job, identity: dict[str, str]) -> None:
        self.config = config
        self.folder = folder
        self.job = job
        self.is_first = job.world.rank == 0
        self.problem = problem
        self.identity = identity
        self.checkpointer = Checkpointer(folder.checkpoints, config.train.keep_checkpoints, job.world.rank)
        self.state = LoopState()
        self._resume()
        if self.is_first:
            folder.write_config(to_yaml(config))

    def train(self) -> Summary:
        """Run the loop and write what remains of it."""
        if self.is_first:
            self._open()
        trackers = self._open_trackers()
        progress = TrainingProgress(self.config.train.steps, self.state.step, shown=self.is_first, goal_key=_GOAL.key)

        def write_row(row: Row) -> None:
            trackers.log(row)
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
                self._run_loop(loop)
                self._save(loop.elapsed_s)
                self.checkpointer.wait()
                summary = self._finish(loop, signals)
        finally:
            progress.close()
            trackers.close()
        return summary

    def _open(self) -> None:
        """Say what will run, and what of it may not be meant."""
        print(describe_run(self.problem, self.job, self.config.optim, self.state.step), flush=True)
        damaged = [f"{path}: is damaged and not used" for path in damaged_checkpoints(self.folder.checkpoints)]
        for doubt in (*damaged, *doubts(self.problem, self.config.optim)):
            print(f"distsam: {doubt}", file=sys.stderr, flush=True)

    def _run_loop(self, loop: TrainingLoop) -> None:
        """The loop; where it diverges, on all ranks together, the last finite weights are saved."""
        try:
            loop.run()
        except TrainingDiverged as error:
            optimizer = self.job.optimizer
            # The loop has not counted the step that raised. A resume starts a new count of steps in a row, or it
            # would end at once.
            self.state.step = optimizer.num_steps
            optimizer.load_counters({**optimizer.counters(), "num_in_a_row": 0})
            self._save(loop.elapsed_s)
            self.checkpointer.wait()
            raise TrainingDiverged(f"{error}, and start anew, or go on from them with train.resume=auto") from None

    def _resume(self) -> None:
        newest = self.checkpointer.newest() if self.config.train.resume == "auto" else None
        if newest is None:
            return
        facts = agreed(lambda: self._resumable(newest))
        best, optimizer = self.state.best, self.job.optimizer
        room = make_room(self.job.model, optimizer.base_optimizer, best, tensor_shapes(newest))
        self.checkpointer.load(newest, room)
        optimizer.load_counters(facts["counters"])
        self.state.step, self.state.elapsed_s = facts["step"], facts["elapsed_s"]
        best.value, best.step, best.num_stale = facts["best_value"], facts["best_step"], facts["num_stale"]
        self.state.last_is_best = facts["last_is_best"]

    def _resumable(self, checkpoint: Path) -> dict[str, Any]:
        """The facts of `checkpoint`, which must be of this training and not beyond its end."""
        facts = read_facts(checkpoint)
        for name, value in self.identity.items():
            if facts[name] != value:
                what = "other data" if name == "data_sha256" else "another model"
                raise InputError(f"{checkpoint}: is a checkpoint of {what}; choose another run.dir")
        if facts["step"] > self.config.train.steps:
            raise InputError(
                f"train.steps: {self.config.train.steps} is less than the {facts['step']} steps that the run in "
                f"{self.folder.path} has done; give at least that"
            )
        return facts

    def _save(self, elapsed_s: float) -> None:
        best = self.state.best
        facts = {
            **self.identity,
            "counters": self.job.optimizer.counters(),
            "best_value": best.value,
            "best_step": best.step,
            "num_stale": best.num_stale,
            "last_is_best": self.state.last_is_best,
            "elapsed_s": elapsed_s,
            "world_size": self.job.world.world_size,
            "versions": versions(),
        }
        tensors = run_tensors(self.job.model, self.job.optimizer.base_optimizer, best)
        self.checkpointer.save(self.state.step, tensors, facts)

    def _finish(self, loop: TrainingLoop, signals: StopSignals) -> Summary:
        """The summary, written. Where no step was taken, the one that is there: nobody can measure a step again."""
        of_this_step = {"steps": self.state.step, **self.identity}
        kept = None
        if not loop.has_stepped:
            kept = from_first_rank(lambda: read_summary(self.folder.summary, of_this_step))
        summary = kept or self._summarise(loop)
        summary.goal = _GOAL
        summary.stopped_by = signals.received or self._reason(loop)
        if self.is_first:
            summary.write(self.folder.summary)
        return summary

    def _summarise(self, loop: TrainingLoop) -> Summary:
        """Scores of the last and of the best weights, and what the run was. Collective: every rank calls it."""
        state, spec = self.state, self.job.model.spec
        last = final = loop.score()
        if state.best.tensors and not state.last_is_best:
            put_weights(self.job.model, state.best.tensors)
            final = self.job.task.evaluate(self.job.model)
        network = SavedNetwork(spec.format, spec.shape, spec.core_names, spec.num_parameters)
        return Summary(
            steps=state.step,
            wall_s=loop.elapsed_s,
            weights="best" if state.best.tensors or state.last_is_best else "last",
            best_step=state.step if state.last_is_best else state.best.step,
            networks={found.name: network for found in self.job.coordinator.networks},
            numbers={**final, **{f"last/{key}": value for key, value in last.items()}, **loop.balance},
            more={
                "balance_step": state.step,
                "world_size": self.job.world.world_size,
                "num_parameters": spec.num_parameters,
                "device": str(self.job.world.device),
                "sharding": self.job.plan.describe(),
                "versions": versions(),
                **self.identity,
            },
        )

    def _reason(self, loop: TrainingLoop) -> str:
        if self.state.step >= self.config.train.steps:
            return "last step"
        return "early stopping" if loop.stopped_early else "a signal to another rank"

    def _open_trackers(self) -> TrackerGroup:
        """The record of the run and its mirror; none on ranks other than 0."""
        if not self.is_first:
            return TrackerGroup(())
        wandb = self.config.wandb
        mirror = WandbTracker(
            wandb.mode,
            self.folder.path,
            project=wandb.project,
            name=wandb.name,
            group=wandb.group,
            config=self.config.model_dump(),
        )
        return TrackerGroup((JsonlTracker(self.folder.metrics, self.state.step), mirror))
