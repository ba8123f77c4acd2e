"""A value of the parameter groups over the steps: learning rate, rho or alpha, warmed up, then along a shape."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from distsam.engine.group_values import put_value
from distsam.errors import ArgumentError

# Shape -> how far the way from start to final is gone (0 to 1) when a part x of the steps is.
SHAPES: dict[str, Callable[[float], float]] = {
    "constant": lambda x: 0.0,
    "linear": lambda x: x,
    "cosine": lambda x: (1 - math.cos(math.pi * x)) / 2,
}


class Schedule:
    """Sets one key of every parameter group from step to step, each group from its own start.

    Step t (0, 1, ...) uses start (t + 1) / warmup_steps while t < warmup_steps. Then it goes from start to `final` in
    the remaining steps, as torch's LinearLR and CosineAnnealingLR do, and stays there. The value is a function of t
    alone, and of what the groups and this are built with: a resumed run with another start follows the new one.

    Args:
        optimizer: its groups have the start values now; this sets those of the first step.
        key: of the groups: "lr", "rho", "alpha".
        shape: "constant", "linear" or "cosine".
        num_steps: when `final` is reached, the warm-up included.
        warmup_steps: at most num_steps.
        final: the value at the end, for every group; "constant" stays at the start.

    Raises:
        ArgumentError: an unknown shape, a key that a group lacks, or a number out of its range.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        key: str,
        shape: str,
        num_steps: int,
        warmup_steps: int = 0,
        final: float = 0.0,
    ) -> None:
        _check(optimizer, key, shape, num_steps, warmup_steps, final)
        self.key = key
        self._optimizer = optimizer
        self._progress = SHAPES[shape]
        self._num_steps, self._warmup_steps, self._final = num_steps, warmup_steps, final
        starts = [float(group[key]) for group in optimizer.param_groups]
        # Torch's scheduler works on learning rates: those of an optimizer of one number per group, which moves nothing.
        self._proxy = SGD([{"params": [nn.Parameter(torch.zeros(()))]} for _ in starts], lr=1.0)
        self._values = [self._value_from(start) for start in starts]
        self._scheduler = LambdaLR(self._proxy, self._values)
        self._write()

    def step(self) -> None:
        """Go on to the next step's value."""
        self._proxy.step()  # torch warns where a scheduler steps before its optimizer
        self._scheduler.step()
        self._write()

    def state(self) -> dict[str, int]:
        """How many steps it has made; for JSON."""
        return {"step": self._scheduler.last_epoch}

    def load_state(self, state: Mapping[str, int]) -> None:
        """Go to where `state` was taken, and set the value of that step."""
        self._scheduler = LambdaLR(self._proxy, self._values, last_epoch=state["step"] - 1)
        self._write()

    def _value_from(self, start: float) -> Callable[[int], float]:
        def value(step: int) -> float:
            if step < self._warmup_steps:
                return start * (step + 1) / self._warmup_steps
            length = max(self._num_steps - self._warmup_steps, 1)
            gone = self._progress(min((step - self._warmup_steps) / length, 1.0))
            return (1 - gone) * start + gone * self._final

        return value

    def _write(self) -> None:
        for group, proxy in zip(self._optimizer.param_groups, self._proxy.param_groups, strict=True):
            put_value(group, self.key, proxy["lr"])


def _check(optimizer: Optimizer, key: str, shape: str, num_steps: int, warmup_steps: int, final: float) -> None:
    if shape not in SHAPES:
        raise ArgumentError("shape", f"{shape}: unknown; use one of {', '.join(SHAPES)}")
    missing: list[dict[str, Any]] = [group for group in optimizer.param_groups if key not in group]
    if missing:
        raise ArgumentError("key", f"{key}: the optimizer's groups have no such value")
    if num_steps < 1:
        raise ArgumentError("num_steps", f"{num_steps}: use at least 1")
    if not 0 <= warmup_steps <= num_steps:
        raise ArgumentError("warmup_steps", f"{warmup_steps}: use 0 to {num_steps}, the number of steps")
    if not 0 <= final < math.inf:
        raise ArgumentError("final", f"{final}: use a number of at least 0")
