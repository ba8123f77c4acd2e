"""Where ZeRO puts weights, as a plan: for people, and for the ranks' parts of the data."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distsam.sharding import Axes, NetworkWeights, Replicate, ShardPlan


@dataclass(frozen=True)
class Zero(Replicate):
    """Weights whole on every rank, at stage 3 cut, each rank with its own part of the data; DeepSpeed cuts optimizer
    state (from stage 1 on) and gradients (from stage 2 on).

    Args:
        stage: 0 to 3.
    """

    stage: int

    @property
    def name(self) -> str:
        """For people; users choose it by the stage."""
        return f"zero{self.stage}"

    def place(
        self, named_shapes: Mapping[str, Sequence[int]], axes: Axes, networks: Sequence[NetworkWeights] = ()
    ) -> ShardPlan:
        """Cuts no dim: at stage 3 DeepSpeed cuts the flattened weights."""
        whole = super().place(named_shapes, axes)
        kind = _CutFlat if self.stage == 3 else ShardPlan
        return kind(self.name, whole.axes, whole.data_axes, whole.shapes, whole.placements)


class _CutFlat(ShardPlan):
    """Each flattened parameter in equal parts, the last of them padded."""

    def _where(self, shape: tuple[int, ...], dims: tuple[int | None, ...]) -> str:
        num_ranks = math.prod(size for _, size in self.axes)
        return f"flat, cut into {num_ranks} pieces of {-(-math.prod(shape) // num_ranks)}"
