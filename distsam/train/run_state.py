"""Where a run stands: what a checkpoint holds of it beside the engine's state."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from distsam.tasks.task import Goal, Scores

MODEL, BEST = "model.", "best."


class BestWeights:
    """The weights with the best value of the goal so far, kept as a copy of each rank's own shards.

    Args:
        goal: which of two values is the better one.

    Attributes:
        value, step: the best value and where it was; None before the first finite one.
        num_stale: evaluations since then.
        tensors: parameter or buffer -> copy, placed like it.
    """

    def __init__(self, goal: Goal) -> None:
        self.goal = goal
        self.value: float | None = None
        self.step: int | None = None
        self.num_stale = 0
        self.tensors: dict[str, Tensor] = {}

    @torch.no_grad()
    def consider(self, weights: Callable[[], Mapping[str, Tensor]], step: int, value: float | None) -> None:
        """Keep a copy of what `weights` gives if `value`, the same on every rank, is the best so far.

        None is an undefined value: it is neither the best nor one evaluation more without a better value.
        """
        if value is None:
            return
        if not self.is_beaten_by(value):
            self.num_stale += 1
            return
        self.value, self.step, self.num_stale = value, step, 0
        self.tensors = {name: tensor.clone() for name, tensor in weights().items()}

    def is_beaten_by(self, value: float | None) -> bool:
        """True for a finite `value` that is better than the best so far."""
        if value is None or not math.isfinite(value):
            return False
        return self.value is None or self.goal.is_better(value, self.value)


@dataclass
class RunState:
    """Where a run stands.

    Attributes:
        best: best weights among those of the evaluations at cadence.
        step: last step that was done.
        last_is_best: whether the last weights are better than those, by an evaluation that was due only because
            training ended. Kept apart, because a longer run would not have had that evaluation.
        elapsed_s: wall time of the parts of the run before this process.
        scores: of the last evaluation.
        scored_step: the step that it was of.
    """

    best: BestWeights
    step: int = 0
    last_is_best: bool = False
    elapsed_s: float = 0.0
    scores: Scores = field(default_factory=dict)
    scored_step: int = -1

    def plain(self) -> dict[str, Any]:
        """All that is no tensor, for JSON; the caller adds `elapsed_s`."""
        return {
            "best_value": self.best.value,
            "best_step": self.best.step,
            "num_stale": self.best.num_stale,
            "last_is_best": self.last_is_best,
        }

    def load_plain(self, saved: Mapping[str, Any]) -> None:
        """Restore what `plain` gave, with step and elapsed_s beside it."""
        self.step, self.elapsed_s, self.last_is_best = saved["step"], saved["elapsed_s"], saved["last_is_best"]
        self.best.value, self.best.step = saved["best_value"], saved["best_step"]
        self.best.num_stale = saved["num_stale"]

    def tensors(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Name in a checkpoint -> these weights, and the best ones."""
        return {
            **{MODEL + name: tensor for name, tensor in weights.items()},
            **{BEST + name: tensor for name, tensor in self.best.tensors.items()},
        }

    def allocate_best(self, weights: Mapping[str, Tensor], names: Mapping[str, Any]) -> None:
        """Make best weights of zeros, placed as `weights`, where a checkpoint holds some, to be filled by loading."""
        for name, tensor in weights.items():
            if BEST + name in names:
                self.best.tensors[name] = torch.zeros_like(tensor)
