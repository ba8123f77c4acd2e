"""One run from its config to its summary."""

import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from distsam.engine import parameters_among
from distsam.errors import InputError, RunIncomplete, TrainingDiverged
from distsam.runs.about import About
from distsam.runs.checkpoints import finished_checkpoints
from distsam.runs.folder import RunFolder
from distsam.runs.lock import RunLock
from distsam.runs.rows import Row
from distsam.runs.summary import SavedGoal, SavedNetwork, Summary, read_summary
from distsam.sharding import Layout, are_finite, close_world, open_world
from distsam.tasks.task import Task, verdict
from distsam.tasks.task import labels as labels_of
from distsam.tensornet import CoreNetwork
from distsam.train import parts
from distsam.train.agreement import agreed, from_first_rank
from distsam.train.alerts import Alerts, Bounds
from distsam.train.auto_values import SAVED
from distsam.train.build import RunParts, build_parts, build_task
from distsam.train.checkpoint import Checkpointer
from distsam.train.checkpoint_reader import read_state, tensor_shapes
from distsam.train.config import Config
from distsam.train.config_file import to_yaml
from distsam.train.keys_of_arguments import arguments_as_keys
from distsam.train.loop import TrainingLoop, evaluated
from distsam.train.memory import peak_memory
from distsam.train.opening import describe_run, probable_mistakes
from distsam.train.placing import Placing, place_run
from distsam.train.progress import TrainingProgress
from distsam.train.refit import merged, plan_refit, write_merged
from distsam.train.run_state import BestWeights, RunState
from distsam.train.same_config import check_same_config
from distsam.train.same_run import check_folder, claim_folder, identify
from distsam.train.settled import describe_values, recalled
from distsam.train.stop_signals import StopSignals
from distsam.train.trackers.jsonl import JsonlTracker
from distsam.train.trackers.tracker import Tracker, TrackerGroup
from distsam.train.unwritten import Unwritten
from distsam.train.versions import versions


def run_training(config: Config) -> Summary:
    """Train as `config` says, alone or as one rank of the world that torchrun or srun describes.

    Returns:
        What summary.json holds, the same on every rank but for `stopped_by`.

    Collectives: opens and closes the default process group; every rank calls it with the same config.

    Raises:
        InputError: something in the config cannot be used, or a rank is missing or has another config; nothing was
            written then.
        TrainingDiverged: too many non-finite steps in a row; the last finite weights are saved.
        RunIncomplete: it was trained to its end, but not all could be written; on rank 0.
    """
    if config.train.num_threads is not None:
        torch.set_num_threads(config.train.num_threads)
    locks: list[RunLock] = []
    try:
        summary, again = _train_once(config, locks)
        if again is None:
            return summary
        refitted, _ = _train_once(again, locks, f"refit of {config.run.dir} for {again.train.steps} steps")
        if refitted.steps < again.train.steps:
            return replace(summary, stopped_by=refitted.stopped_by)
        summary = merged(summary, refitted)
        write_merged(RunFolder(Path(config.run.dir)), summary, locks)
        return summary
    finally:
        for lock in locks:
            lock.release()


def _train_once(config: Config, locks: list[RunLock], note: str = "") -> tuple[Summary, Config | None]:
    """One fit in a world of its own, and the config of the one that is to follow.

    The lock of its folder comes into `locks`, on rank 0.
    """
    folder = RunFolder(Path(config.run.dir))
    with arguments_as_keys("sharding"):
        world = open_world(config.sharding.device)
    try:
        check_same_config(config)
        asked = config
        placing = place_run(recalled(asked, folder), world, partial(_find_task, folder))
        config = placing.config
        # All ranks have looked at the folder: from here on it may change.
        identity = identify(config, placing.task)
        run = agreed(lambda: _prepare(placing, folder, locks))
        # A task of the user's own is checked as it is called: what is wrong with it is said by the key that gave it.
        with parts.TASKS.chosen(config.task).naming():
            one = _Run(
                config, folder, run, identity, locks[-1] if locks else None, note or describe_values(asked, config)
            )
            summary, incomplete = one.train_as_far_as_possible()
            again = plan_refit(config, summary, incomplete is None, one.is_first)
        if incomplete is not None:
            raise incomplete
        return summary, again
    finally:
        close_world()


def _find_task(folder: RunFolder, config: Config, layout: Layout) -> Task:
    task = build_task(config, layout)
    check_folder(folder, config)
    return task


def _prepare(placing: Placing, folder: RunFolder, locks: list[RunLock]) -> RunParts:
    """The parts of the run; on rank 0 the lock of its folder comes into `locks`, also if another rank has a mistake."""
    config = placing.config
    run = build_parts(placing.planned, placing.task, placing.layout, folder, placing.model)
    if run.rank == 0:
        for word, part in parts.TRACKERS.parts.items():
            with arguments_as_keys(word):
                part.prepare(getattr(config, word), folder.path)
        locks.append(claim_folder(folder, config))
    return run


# What a checkpoint is of where a digest in it differs.
_OTHER = {
    "data_sha256": "other data",
    "fingerprint": "another model",
    "frozen_sha256": "a model with other frozen weights",
}


class _Run:
    """A run under way: its parts, its state and its folder; `note` goes into its first line."""

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        run: RunParts,
        identity: dict[str, str],
        lock: RunLock | None,
        note: str = "",
    ) -> None:
        self.config = config
        self._note = note
        self._lock = lock
        self.folder = folder
        self.parts = run
        self.is_first = run.rank == 0
        self.identity = {**identity, **run.frozen}
        self.checkpointer = Checkpointer(folder.checkpoints, config.train.keep_checkpoints, run.rank, self._has_folder)
        self.state = RunState(BestWeights(run.task.goal))
        self._resume()
        agreed(self._write_config)

    def train(self) -> Summary:
        """Run the loop to its end, and write the summary."""
        record = JsonlTracker(self.folder.metrics, self.state.step) if self.is_first else None
        trackers = TrackerGroup((record, *self._open_trackers()) if record else ())
        self.unwritten = Unwritten(partial(self._say, trackers))
        if record is not None:
            cadence = max(self.config.train.log_every, self.config.train.eval_every or 1)
            self._open(trackers, [record.set_aside, record.missing(self.state.step, cadence)])
        alerts = self._alerts()
        goal = self.parts.task.goal
        progress = TrainingProgress(self.config.train.steps, self.state.step, shown=self.is_first, goal_key=goal.key)

        def write_row(row: Row) -> None:
            lines = alerts.look(row)
            trackers.log(row)
            for line in lines:
                self._say(trackers, line)
            progress.show(row)
            if record is not None and self._has_folder():
                self.unwritten.note("metrics.jsonl", record.problem)

        loop = TrainingLoop(
            self.parts,
            self.config.train,
            self.state,
            save=lambda: self._save(loop.elapsed_s),
            poll=self._poll_checkpoint,
            write_row=write_row,
            tick=progress.tick,
        )
        try:
            with StopSignals(self.parts.engine.request_stop) as signals:
                self._run_loop(loop, trackers)
                self._save(loop.elapsed_s)
                self._wait_for_checkpoint()
                summary = self._finish(loop, signals, trackers)
        finally:
            progress.close()
            trackers.close()
            self.parts.engine.close()
        if record is not None and self._has_folder():
            self.unwritten.note("metrics.jsonl", record.problem)
        if self.unwritten.missing is not None and self.is_first:
            raise RunIncomplete(self.unwritten.missing, summary)
        return summary

    @property
    def _goal(self) -> SavedGoal:
        goal = self.parts.task.goal
        return SavedGoal(goal.key, goal.higher_is_better, goal.columns, goal.headline)

    def train_as_far_as_possible(self) -> tuple[Summary, RunIncomplete | None]:
        """`train`, but what it raises on rank 0 alone is returned: the other ranks go on and would wait for rank 0."""
        try:
            return self.train(), None
        except RunIncomplete as error:
            summary: Summary = error.summary  # type: ignore[assignment]
            return summary, error

    def _alerts(self) -> Alerts:
        keys = self.config.train
        bounds = Bounds(keys.alert_deviation, keys.alert_jump, keys.alert_share)
        return Alerts(bounds, [network.name for network in self.parts.coordinator.networks])

    def _say(self, trackers: Tracker, line: str) -> None:
        if self.is_first:
            print(f"distsam: {line}", file=sys.stderr, flush=True)
            trackers.alert(line)

    def _has_folder(self) -> bool:
        """False on rank 0 once the run folder was moved or deleted: what is written from then on would lie in another
        folder of that name, a run in two halves."""
        if self._lock is None or self._lock.is_held():
            return True
        problem = f"run.dir: {self.folder.path} was moved or deleted, or its file {self.folder.lock.name} was"
        self.unwritten.gone("the run folder", problem)
        return False

    def _wait_for_checkpoint(self) -> None:
        self.checkpointer.wait()
        self._note_checkpoint()

    def _poll_checkpoint(self) -> None:
        self.checkpointer.poll()
        self._note_checkpoint()

    def _note_checkpoint(self) -> None:
        if self._has_folder():
            self.unwritten.note("the checkpoint", self.checkpointer.problem)

    def _write_config(self) -> None:
        if self.is_first:
            try:
                self.folder.write_config(to_yaml(self.config))
                About(self.config.train.steps, self.state.step, self._goal).write(self.folder.about)
                if (labels := labels_of(self.parts.task)) is not None:
                    self.folder.write_labels(labels)
            except OSError as error:
                raise InputError(f"run.dir: {self.folder.path} cannot be written ({error.strerror})") from None

    def _open(self, trackers: Tracker, of_rows: list[str | None]) -> None:
        """Say what will run, what of the folder is damaged, and what is probably a mistake."""
        print(describe_run(self.parts, self.config, self.state.step, self._note), flush=True)
        for line in (*self._damaged, *filter(None, of_rows), *probable_mistakes(self.parts, self.config)):
            self._say(trackers, line)

    def _run_loop(self, loop: TrainingLoop, trackers: Tracker) -> None:
        """The loop; where it diverges, on all ranks together, the weights are saved if they are finite."""
        try:
            loop.run()
        except TrainingDiverged as error:
            # The engine has counted the step that raised, the loop has not.
            self.state.step = self.parts.engine.num_steps
            self._save(loop.elapsed_s)
            self._wait_for_checkpoint()
            trackers.alert(str(error))
            raise TrainingDiverged(f"{error}, and start anew{self._where_to_go_on()}") from None

    def _where_to_go_on(self) -> str:
        if self.checkpointer.problem is None:
            return ", or go on from them with train.resume=auto"
        has_any = finished_checkpoints(self.folder.checkpoints)
        return ", or go on from the checkpoint before with train.resume=auto" if has_any else ""

    def _resume(self) -> None:
        newest, self._damaged = self.checkpointer.newest() if self.config.train.resume == "auto" else (None, [])
        if newest is None:
            return
        saved = agreed(lambda: self._resumable(newest))
        engine, shapes = self.parts.engine, tensor_shapes(newest)
        weights = engine.weights()
        self.state.allocate_best(weights, shapes)
        self.checkpointer.load(newest, {**self.state.tensors(weights), **engine.allocate_state(shapes)})
        engine.put_weights(weights)
        engine.load_state(saved["engine"])
        self.state.load_plain(saved)

    def _resumable(self, checkpoint: Path) -> dict[str, Any]:
        """The state in `checkpoint`, which must be of this training and not beyond its end."""
        saved = read_state(checkpoint, counters=self.parts.engine.counters())
        for name, value in self.identity.items():
            if saved.get(name) != value:
                what = _OTHER[name]
                raise InputError(f"{checkpoint}: is a checkpoint of {what}; choose another run.dir")
        if saved["step"] > self.config.train.steps:
            raise InputError(
                f"train.steps: {self.config.train.steps} is less than the {saved['step']} steps that the run in "
                f"{self.folder.path} has done; give at least that"
            )
        return saved

    def _save(self, elapsed_s: float) -> None:
        engine = self.parts.engine
        if self.state.scored_step != self.state.step:  # else they were averaged to be scored
            self.parts.average_buffers()
        weights = engine.weights()
        if not are_finite(parameters_among(self.parts.model, weights)):
            # Kept, it would push out those that a run can go on from.
            self.checkpointer.give_up(self.state.step, "a weight is not finite")
            self._note_checkpoint()
            return
        plain = {
            **self.identity,
            **self.state.plain(),
            "elapsed_s": elapsed_s,
            "engine": engine.state(),
            SAVED: dict(self.parts.auto),
            "world_size": self.parts.layout.world.world_size,
            "versions": versions(),
        }
        tensors = {**self.state.tensors(weights), **engine.state_tensors()}
        self.checkpointer.save(self.state.step, tensors, plain)
        self._note_checkpoint()

    def _finish(self, loop: TrainingLoop, signals: StopSignals, trackers: Tracker) -> Summary:
        """Write the summary; where no step was taken, keep the one that is there: a step cannot be measured again."""
        of_this_step = {"steps": self.state.step, **self.identity}
        kept = None
        if not loop.has_stepped:
            kept = from_first_rank(lambda: read_summary(self.folder.summary, of_this_step))
        summary = kept or self._summarise(loop)
        goal = summary.goal = self._goal
        summary.stopped_by = signals.received or self._reason(loop)
        decided = summary.numbers.get(goal.key)
        if summary.best_step is None and decided is not None and not math.isfinite(decided):
            self._say(trackers, f"{goal.key} was never a finite number: no best weights were chosen")
        if signals.received is None and (line := verdict(self.parts.task, summary.numbers)):
            # Its advice is for a training that has come to its end.
            is_better_still = summary.stopped_by == "last step" and summary.best_step == summary.steps
            more = f"{goal.key} was still getting better at the last step; give more train.steps"
            self._say(trackers, more if is_better_still else line)
        if self.is_first and self._has_folder():
            try:
                summary.write(self.folder.summary)
            except OSError as error:
                self.unwritten.lose("summary.json", f"{self.folder.summary}: cannot be written ({error.strerror})")
        return summary

    def _summarise(self, loop: TrainingLoop) -> Summary:
        """Scores of the last and of the best weights, and what the run was. Collective: every rank calls it."""
        state, run = self.state, self.parts
        last = final = loop.score()
        if state.best.tensors and not state.last_is_best:
            run.engine.put_weights(state.best.tensors)
            final = evaluated(run.task, run.model)
        return Summary(
            steps=state.step,
            wall_s=loop.elapsed_s,
            weights="best" if state.best.tensors or state.last_is_best else "last",
            best_step=state.step if state.last_is_best else state.best.step,
            networks={network.name: _saved_network(network) for network in run.coordinator.networks},
            numbers={**final, **{f"last/{key}": value for key, value in last.items()}, **loop.balance},
            more={
                "balance_step": state.step,
                "world_size": run.layout.world.world_size,
                "num_parameters": run.num_parameters,
                "device": str(run.layout.world.device),
                **peak_memory(run.layout.world.device),
                "sharding": run.plan.describe(),
                "versions": versions(),
                **self.identity,
            },
        )

    def _reason(self, loop: TrainingLoop) -> str:
        if self.state.step >= self.config.train.steps:
            return "last step"
        if loop.is_out_of_time:
            return "time limit"
        return "early stopping" if loop.stopped_early else "a signal to another rank"

    def _open_trackers(self) -> Iterator[Tracker]:
        """Those that the config names."""
        for word, part in parts.TRACKERS.parts.items():
            section = getattr(self.config, word)
            tracker = part.build(section, self.folder.path, self.config.shown(), self.state.step)
            if tracker is not None:
                yield tracker


def _saved_network(network: CoreNetwork) -> SavedNetwork:
    sizes = ("network", ()) if network.spec is None else (network.spec.format, network.spec.shape)
    return SavedNetwork(*sizes, network.core_names, sum(core.numel() for core in network.cores))
