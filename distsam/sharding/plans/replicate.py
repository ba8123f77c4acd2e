"""Every rank holds all weights; the gradients are averaged."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distsam.sharding.plan import Axes, NetworkWeights, ShardPlan


@dataclass(frozen=True)
class Replicate:
    """Every parameter whole on every rank, each rank with its own part of the data."""

    @property
    def name(self) -> str:
        """The word by which users choose it."""
        return "replicate"

    @property
    def data_axes(self) -> tuple[str, ...]:
        """The one axis there is."""
        return ("replicate",)

    def axes(self, world_size: int) -> Axes:
        """One axis of all ranks."""
        return (("replicate", world_size),)

    def place(
        self, named_shapes: Mapping[str, Sequence[int]], axes: Axes, networks: Sequence[NetworkWeights] = ()
    ) -> ShardPlan:
        """Cuts nothing, on any axes; all of them are data axes."""
        shapes = tuple((name, tuple(shape)) for name, shape in named_shapes.items())
        whole = (None,) * len(axes)
        return ShardPlan(self.name, axes, tuple(name for name, _ in axes), shapes, tuple((n, whole) for n, _ in shapes))
