"""Where ZeRO puts weights, as a plan: for people, and for the ranks' parts of the data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distsam.sharding import Axes, Replicate, ShardPlan


@dataclass(frozen=True)
class Zero(Replicate):
    """Weights whole on every rank, each with its own part of the data; DeepSpeed cuts optimizer state (from stage 1 on)
    and gradients (at stage 2).

    Args:
        stage: 0, 1 or 2.
    """

    stage: int

    @property
    def name(self) -> str:
        """For people; users choose it by the stage."""
        return f"zero{self.stage}"

    def place(self, named_shapes: Mapping[str, Sequence[int]], axes: Axes) -> ShardPlan:
        """Cuts no weights."""
        whole = super().place(named_shapes, axes)
        return ShardPlan(self.name, whole.axes, whole.data_axes, whole.shapes, whole.placements)
