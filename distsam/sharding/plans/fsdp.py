"""Each parameter cut over the ranks, gathered when it is needed: FSDP2, also in several replicas."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from distsam.errors import ArgumentError
from distsam.sharding.plan import Axes, NetworkWeights, ShardPlan


@dataclass(frozen=True)
class Fsdp:
    """Each parameter cut along its widest dim that the last axis divides.

    One that has no such dim is cut unevenly along dim 0, the only one along which FSDP2 can do that, as long as what
    FSDP2 adds to make the pieces equal at most doubles it, and it is not so small that a copy costs nothing; else it
    stays whole.

    Args:
        replicas: how many copies of the whole model the ranks hold together; it must divide the world size.
        uneven_from: elements from which a parameter is cut unevenly. A smaller one, such as a bias, travels with the
            others that are whole, and can be read outside the model's forward.
    """

    replicas: int = 1
    uneven_from: int = 4096

    @property
    def name(self) -> str:
        """The word by which users choose it."""
        return "fsdp"

    @property
    def data_axes(self) -> tuple[str, ...]:
        """All axes: every rank has its own part of the data."""
        return ("shard",) if self.replicas == 1 else ("replicate", "shard")

    def axes(self, world_size: int) -> Axes:
        """One axis, or replicas x shards.

        Raises:
            ArgumentError: the replicas do not divide the world size.
        """
        if self.replicas < 1 or world_size % self.replicas:
            raise ArgumentError("replicas", f"{self.replicas}: it must divide the world size, which is {world_size}")
        shards = ("shard", world_size // self.replicas)
        return (shards,) if self.replicas == 1 else (("replicate", self.replicas), shards)

    def place(
        self, named_shapes: Mapping[str, Sequence[int]], axes: Axes, networks: Sequence[NetworkWeights] = ()
    ) -> ShardPlan:
        """Cuts along the last of `axes`; all of them are data axes.

        Raises:
            ArgumentError: it can cut no parameter.
        """
        shapes = tuple((name, tuple(shape)) for name, shape in named_shapes.items())
        num_shards = axes[-1][1]
        dims = [self._dim_to_cut(shape, num_shards) for _, shape in shapes]
        if shapes and all(dim is None for dim in dims):
            raise ArgumentError(
                "plan",
                f"fsdp: no core has a dim that {num_shards} ranks divide, or nearly; "
                f"use a shard axis of {self._usable([shape for _, shape in shapes])} ranks, or replicate",
            )
        along_others = (None,) * (len(axes) - 1)
        placements = tuple((name, (*along_others, dim)) for (name, _), dim in zip(shapes, dims, strict=True))
        return ShardPlan(self.name, axes, tuple(name for name, _ in axes), shapes, placements)

    def _dim_to_cut(self, shape: tuple[int, ...], num_shards: int) -> int | None:
        if 0 in shape:
            return None
        fitting = [(size, -dim) for dim, size in enumerate(shape) if size % num_shards == 0]
        if fitting:
            return -max(fitting)[1]
        is_large = prod(shape) >= self.uneven_from and bool(shape) and shape[0] > 1
        return 0 if is_large and -(-shape[0] // num_shards) * num_shards <= 2 * shape[0] else None

    def _usable(self, shapes: Sequence[tuple[int, ...]]) -> str:
        """Shard counts that at least one parameter can serve, for the error message."""
        counts = [n for n in range(2, 65) if any(self._dim_to_cut(shape, n) is not None for shape in shapes)]
        return ", ".join(map(str, counts[:8])) or "1"
