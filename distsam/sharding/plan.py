"""Where every weight lives, as frozen data: computed from shapes alone, printed, then applied from outside."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distsam.errors import InputError
from distsam.sharding.world import check_plan_name


@dataclass(frozen=True)
class ShardPlan:
    """A map from parameter to placement on a mesh whose last axis is the shard axis.

    Attributes:
        name: "replicate" or "fsdp".
        mesh_shape: sizes of the mesh axes: (shard,) or (replicate, shard); (replicate,) for "replicate".
        shapes: (parameter, full shape) in the model's order.
        dims: (parameter, dim that the shard axis divides); None is a parameter that every rank holds whole.

    Raises:
        InputError: an unknown name, a dim for a parameter that is not there or for none, or one that does not exist,
            is not divided, or is cut under "replicate".
    """

    name: str
    mesh_shape: tuple[int, ...]
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    dims: tuple[tuple[str, int | None], ...]

    def __post_init__(self) -> None:
        check_plan_name(self.name)
        if not self.mesh_shape or [name for name, _ in self.dims] != [name for name, _ in self.shapes]:
            raise InputError(
                f"sharding plan on a mesh of {self.mesh_shape}: it needs an axis, and a dim or None for each parameter"
            )
        for name, shape in self.shapes:
            dim = self.dim_of(name)
            if dim is not None and not self._can_cut(shape, dim):
                raise InputError(
                    f"sharding plan {self.name}: {name} of shape {shape} cannot be cut along dim {dim} into "
                    f"{self.num_shards} pieces; use a dim that they divide, or None"
                )

    def _can_cut(self, shape: tuple[int, ...], dim: int) -> bool:
        is_cut = self.name != "replicate" and 0 <= dim < len(shape) and 0 not in shape
        return is_cut and shape[dim] % self.num_shards == 0

    @property
    def num_shards(self) -> int:
        """Into how many pieces a sharded parameter is cut."""
        return 1 if self.name == "replicate" else self.mesh_shape[-1]

    def dim_of(self, parameter: str) -> int | None:
        """The dim along which `parameter` is cut, or None if it is whole on every rank."""
        return dict(self.dims)[parameter]

    def describe(self) -> str:
        """One line for the mesh and one per parameter, for people."""
        mesh = " x ".join(str(n) for n in self.mesh_shape)
        lines = [f"plan {self.name} on a mesh of {mesh}"]
        for name, shape in self.shapes:
            dim = self.dim_of(name)
            size = " x ".join(str(n) for n in shape)
            where = "whole on every rank"
            if dim is not None:
                where = f"dim {dim} cut into {self.num_shards} pieces of {shape[dim] // self.num_shards}"
            lines.append(f"  {name} ({size}): {where}")
        return "\n".join(lines)


def plan_shards(
    named_shapes: Mapping[str, Sequence[int]], plan: str = "fsdp", mesh_shape: Sequence[int] = (1,)
) -> ShardPlan:
    """The placement of every parameter; nothing is padded, so a shard is never empty.

    "fsdp" cuts each parameter along its widest dim that the shard axis divides; a parameter that no dim
    of which it divides stays whole on every rank. "replicate" keeps all of them whole.

    Args:
        named_shapes: parameter name -> full shape.
        plan: "replicate" or "fsdp".
        mesh_shape: sizes of the mesh axes; for "fsdp" the last one is the shard axis.

    Raises:
        InputError: unknown plan, or an "fsdp" mesh whose shard axis divides no dim of any parameter.
    """
    check_plan_name(plan)
    shapes = tuple((name, tuple(shape)) for name, shape in named_shapes.items())
    num_shards = 1 if plan == "replicate" else mesh_shape[-1]
    dims = tuple((n, None if plan == "replicate" else _widest(s, num_shards)) for n, s in shapes)
    if plan == "fsdp" and shapes and all(dim is None for _, dim in dims):
        raise InputError(
            f"sharding.plan=fsdp: no core has a dim that {num_shards} ranks divide; "
            f"use a shard axis of {_usable(shapes)} ranks (sharding.replicas), or sharding.plan=replicate"
        )
    return ShardPlan(plan, tuple(mesh_shape), shapes, dims)


def _widest(shape: tuple[int, ...], num_shards: int) -> int | None:
    if 0 in shape:
        return None
    fitting = [(size, -dim) for dim, size in enumerate(shape) if size % num_shards == 0]
    return -max(fitting)[1] if fitting else None


def _usable(shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> str:
    """Shard counts that at least one parameter can serve, for the error message."""
    counts = [n for n in range(2, 65) if any(_widest(shape, n) is not None for _, shape in shapes)]
    return ", ".join(map(str, counts[:8])) or "1"
