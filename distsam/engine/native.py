"""Who runs forward, backward and step: plain torch."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from distsam.engine.group_values import GroupValues
from distsam.engine.optimizer_state import allocate_tensors, load_plain_values, plain_values, tensors_of
from distsam.engine.schedule import Schedule
from distsam.engine.weights import model_tensors, put_tensors
from distsam.errors import ArgumentError, TrainingDiverged
from distsam.optim import Wrapper
from distsam.sharding import PausedPieces, accumulating, local_tensor, pausable


class NativeEngine:
    """The Engine of plain torch; see `Engine` for what each method promises.

    Args:
        model: placed by `shard`.
        optimizer: built after that.
        autocast: run forward in this lower precision (torch.bfloat16), in both of SAM's passes; weights, gradients and
            steps keep their dtype. None: forward is in the dtype of the weights.
        clip_norm: largest norm of all gradients together, over all ranks, that the base optimizer gets; None: any.
        schedules: of `optimizer`; each makes one step after every step of the engine.

    Raises:
        ArgumentError: autocast is another dtype than bfloat16, clip_norm is not above 0, or two schedules of one key.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Wrapper,
        *,
        autocast: torch.dtype | None = None,
        clip_norm: float | None = None,
        schedules: Sequence[Schedule] = (),
    ) -> None:
        # float16 would need its loss scaled, or small gradients become 0.
        if autocast not in (None, torch.bfloat16):
            raise ArgumentError("autocast", f"{autocast}: use torch.bfloat16 or None")
        if clip_norm is not None and not 0 < clip_norm < float("inf"):
            raise ArgumentError("clip_norm", f"{clip_norm}: a norm to clip at is a number above 0")
        keys = [schedule.key for schedule in schedules]
        if len(set(keys)) < len(keys):
            raise ArgumentError("schedules", f"{', '.join(keys)}: give each key one schedule")
        self.model = model
        self.optimizer = optimizer
        self._autocast = autocast
        self._schedules = tuple(schedules)
        self._groups = GroupValues(optimizer, scheduled=keys)
        self._device_type = next(local_tensor(p).device.type for g in optimizer.param_groups for p in g["params"])
        self._is_closed = False
        if clip_norm is not None:
            optimizer.clip_norm = clip_norm
        self._averages_later = pausable([p for g in optimizer.param_groups for p in g["params"]])
        if self._averages_later:
            optimizer.use_pieces(PausedPieces)

    def step(self, losses: Sequence[Callable[[], Tensor]]) -> Tensor:
        """One update of the weights; see `Engine.step`."""
        if self._is_closed:
            raise RuntimeError("the engine is closed: build a new one for more steps")
        if not losses:
            raise ValueError("losses: there is none; give one callable per micro-batch")
        num_steps = self.num_steps
        try:
            loss = self.optimizer.step(lambda: self._sweep(losses))  # type: ignore[arg-type, return-value]
        except TrainingDiverged:
            # A step that counts: a run that goes on from its checkpoint would be a step behind in its schedules.
            if self.num_steps > num_steps:
                self._advance_schedules()
            raise
        assert isinstance(loss, Tensor)
        self._advance_schedules()
        return loss

    def _advance_schedules(self) -> None:
        for schedule in self._schedules:
            schedule.step()

    def _sweep(self, losses: Sequence[Callable[[], Tensor]]) -> Tensor:
        """Gradients of the mean over the micro-batches, reduced by the last backward."""
        for group in self.optimizer.param_groups:
            for param in group["params"]:
                param.grad = None
        count = len(losses)
        if count == 1 and not self._averages_later:
            return self._backward(losses[0], 1)
        local = losses if self._averages_later else losses[:-1]
        with accumulating(self.model):
            parts = [self._backward(compute, count) for compute in local]
        parts += [self._backward(compute, count) for compute in losses[len(local) :]]
        return parts[0] if count == 1 else torch.stack(parts).sum(0)

    def _backward(self, compute_loss: Callable[[], Tensor], count: int) -> Tensor:
        # The cast weights are kept until the context ends, so SAM's second pass casts the perturbed ones anew.
        with nullcontext() if self._autocast is None else torch.autocast(self._device_type, self._autocast):
            loss = compute_loss()
        part = loss if count == 1 else loss / count
        part.backward()
        return part.detach()

    def request_stop(self) -> None:
        """This rank wants the run to end; all ranks learn it in their next step."""
        self.optimizer.request_stop()

    @property
    def stop_requested(self) -> bool:
        """True, on all ranks after the same step, once any rank has called `request_stop`."""
        return self.optimizer.stop_requested

    @property
    def num_steps(self) -> int:
        """How many steps were taken, skipped ones included."""
        return self.optimizer.num_steps

    def counters(self) -> dict[str, int]:
        """Those of the whole chain of wrappers."""
        return self.optimizer.counters()

    def state(self) -> dict[str, Any]:
        """Counters, group values, what the base keeps that is no tensor, schedules; for JSON."""
        return {
            "counters": self.counters(),
            **self._groups.state(),
            "base": plain_values(self.model, self.optimizer),
            "schedules": {schedule.key: schedule.state() for schedule in self._schedules},
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` gave; see `Engine.load_state`."""
        self.optimizer.load_counters(state["counters"])
        self._groups.load_state(state)
        load_plain_values(self.model, self.optimizer, state["base"])
        for schedule in self._schedules:
            # A schedule that the earlier part of the run did not have takes effect from where the run stands.
            schedule.load_state(state["schedules"].get(schedule.key, {"step": self.num_steps}))

    def weights(self) -> dict[str, Tensor]:
        """The model's tensors, sharing memory."""
        return model_tensors(self.model)

    def put_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy `tensors` into the model's. No collective."""
        put_tensors(self.model, tensors)

    def state_tensors(self) -> dict[str, Tensor]:
        """`optim.<parameter>.<key>` of the base, `<wrapper>.<parameter>.<key>` of each wrapper that has own state."""
        return tensors_of(self.model, self.optimizer)

    def allocate_state(self, shapes: Mapping[str, tuple[torch.Size, torch.dtype]]) -> dict[str, Tensor]:
        """`state_tensors` with zeros for what no step has made yet; see `Engine.allocate_state`."""
        allocate_tensors(self.model, self.optimizer, shapes)
        return self.state_tensors()

    def close(self) -> None:
        """No step after this. A second call does nothing."""
        self._is_closed = True
