"""The loop: step, log, evaluate, checkpoint, stop; nothing between two steps that costs more than microseconds."""

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from distsam.runs.rows import Row
from distsam.tasks.task import Scores, Task
from distsam.train.build import RunParts
from distsam.train.config import TrainKeys
from distsam.train.row_book import RowBook
from distsam.train.run_state import RunState


class TrainingLoop:
    """Runs the steps of one run.

    Args:
        run: what to run.
        train: cadences and number of steps.
        state: where to begin; kept up to date.
        save: called with no arguments when a checkpoint is due.
        poll: called after every step, to let background work be finished off.
        write_row: takes each row; only rank 0 is given any.
        tick: called with every step, for the progress bar.
    """

    def __init__(
        self,
        run: RunParts,
        train: TrainKeys,
        state: RunState,
        *,
        save: Callable[[], None],
        poll: Callable[[], None],
        write_row: Callable[[Row], None],
        tick: Callable[[int], None],
    ) -> None:
        self.parts = run
        self.train = train
        self.state = state
        self.stopped_early = False
        self.is_out_of_time = False
        self.balance: Row = {}
        self._save, self._poll, self._tick = save, poll, tick
        self._book = RowBook(write_row)
        self._eval_every = train.eval_every or train.log_every
        self._started_s = time.perf_counter()
        self._first_step = state.step
        self._last_row = (state.step, self._started_s)

    @property
    def elapsed_s(self) -> float:
        """Wall time of the run until now, earlier parts included."""
        return self.state.elapsed_s + time.perf_counter() - self._started_s

    @property
    def has_stepped(self) -> bool:
        """True if this process has taken a step."""
        return self.state.step > self._first_step

    def run(self) -> None:
        """Steps until the last one, an early stop, or a request to stop; then all rows are complete.

        Collectives: those of the steps and evaluations; every rank calls it.

        Raises:
            TrainingDiverged: too many non-finite steps in a row; the rows until then are written.
        """
        parts, state = self.parts, self.state
        if state.step == 0:
            self._begin()
        try:
            while state.step < self.train.steps and not self._is_stale():
                self._watch_clock()
                step = state.step + 1
                batches = parts.task.microbatches(step - 1, self.train.accumulate)
                parts.engine.step([partial(parts.task.loss, parts.model, batch) for batch in batches])
                state.step = step
                self._after_step(step)
                if parts.engine.stop_requested:
                    break
        finally:
            self._collect(parts.coordinator.poll())
        self._end()

    def score(self) -> Scores:
        """The scores of the weights as they are; computed once a step. Collective: every rank calls it."""
        if self.state.scored_step != self.state.step:
            self.parts.average_buffers()
            self.state.scores = evaluated(self.parts.task, self.parts.model)
            self.state.scored_step = self.state.step
        return self.state.scores

    def _begin(self) -> None:
        row = {**self.score(), **self.parts.coordinator.snapshot(), **self.parts.counts(), **self.parts.settled()}
        if self.parts.rank == 0:
            self._book.open(0, row, waits=False)

    def _after_step(self, step: int) -> None:
        self.state.last_is_best = False
        is_logged = self.parts.coordinator.is_due(step)
        is_evaluated = step % self._eval_every == 0 or step == self.train.steps
        if is_evaluated:
            self._evaluate(step)
        if is_logged or is_evaluated:
            self._open_row(step, is_logged, is_evaluated)
        self._collect(self.parts.coordinator.poll())
        if self.train.checkpoint_every and step % self.train.checkpoint_every == 0:
            self._save()
        self._poll()
        self._tick(step)

    def _evaluate(self, step: int) -> None:
        value = self.score()[self.parts.task.goal.key]
        if step % self._eval_every == 0:
            self.state.best.consider(self.parts.engine.weights, step, value)
        else:
            self.state.last_is_best = self.state.best.is_beaten_by(value)

    def _watch_clock(self) -> None:
        """Make the next step the last one once the time is over; by the clock of rank 0, which all ranks follow."""
        limit = self.train.max_seconds
        if limit is not None and self.parts.rank == 0 and self.elapsed_s >= limit:
            self.is_out_of_time = True
            self.parts.engine.request_stop()

    def _is_stale(self) -> bool:
        patience = self.train.early_stopping
        self.stopped_early = patience is not None and self.state.best.num_stale >= patience
        return self.stopped_early

    def _open_row(self, step: int, is_logged: bool, is_evaluated: bool) -> None:
        if self.parts.rank != 0:
            return
        now = time.perf_counter()
        steps, seconds = step - self._last_row[0], now - self._last_row[1]
        self._last_row = (step, now)
        numbers: Row = {"time/steps_per_s": steps / seconds, "time/elapsed_s": self.elapsed_s, **self.parts.settled()}
        if is_evaluated:
            numbers.update(self.state.scores)
        self._book.open(step, numbers, waits=is_logged)

    def _collect(self, published: list[tuple[int, Row]]) -> None:
        for step, numbers in published:
            self._book.close(step, numbers)

    def _end(self) -> None:
        """Complete the rows of which the coordinator still holds numbers, and write the last one, due or not."""
        coordinator, step = self.parts.coordinator, self.state.step
        self.balance = {**coordinator.snapshot(), **self.parts.counts(), **self.parts.settled()}
        self._collect(coordinator.flush())
        # A run that was resumed at its end has that row in its file already.
        if self.has_stepped and not coordinator.is_due(step) and self.state.scored_step != step:
            row = {**self.score(), **self.balance}
            if self.parts.rank == 0:
                self._book.close(step, row)


@torch.no_grad()
def evaluated(task: Task, model: nn.Module) -> Scores:
    """The task's scores of the model in evaluation mode (dropout off, running statistics as they are)."""
    was_training = model.training
    model.eval()
    try:
        return task.evaluate(model)
    finally:
        model.train(was_training)
