"""Where every weight lives, as frozen data: computed from shapes alone, printed, then applied from outside."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from distsam.errors import InputError

Axes = tuple[tuple[str, int], ...]


class Plan(Protocol):
    """How weights are to be placed, before the number of ranks or a shape is known; one file in `plans` each.

    Attributes:
        name: one word, by which users choose it.
        data_axes: the axes along which ranks see different data; ranks that differ only along others see the same.
    """

    @property
    def name(self) -> str: ...

    @property
    def data_axes(self) -> tuple[str, ...]: ...

    def axes(self, world_size: int) -> Axes:
        """(name, size) of every mesh axis, slowest first; the sizes multiply to the world size.

        Raises:
            ArgumentError: this number of ranks cannot be laid out so.
        """
        ...

    def place(self, named_shapes: Mapping[str, Sequence[int]], axes: Axes) -> "ShardPlan":
        """The placement of every parameter on these axes.

        Raises:
            ArgumentError: the axes can serve none of the parameters.
        """
        ...


@dataclass(frozen=True)
class ShardPlan:
    """A map from parameter to its placement along every axis of a mesh.

    Attributes:
        name: of the plan that made it; for people.
        axes: (name, size) of the mesh axes, slowest first.
        data_axes: those of them along which ranks see different data.
        shapes: (parameter, full shape) in the model's order.
        placements: (parameter, per axis the dim that it cuts, or None where its ranks hold the same).

    Raises:
        InputError: axes that are none, or named twice; a placement that is missing, too many, of another length than
            the axes, or that cuts a dim that does not exist, is cut already, or is not divided.
    """

    name: str
    axes: Axes
    data_axes: tuple[str, ...]
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    placements: tuple[tuple[str, tuple[int | None, ...]], ...]

    def __post_init__(self) -> None:
        names = [name for name, _ in self.axes]
        if not names or len(set(names)) < len(names) or not set(self.data_axes) <= set(names):
            raise self._wrong(f"axes {self.axes} with the data axes {self.data_axes}; name each axis once")
        if [name for name, _ in self.placements] != [name for name, _ in self.shapes]:
            raise self._wrong("it needs a placement for each parameter, in the order of the shapes")
        for (name, shape), (_, dims) in zip(self.shapes, self.placements, strict=True):
            self._check_placement(name, shape, dims)

    def _check_placement(self, name: str, shape: tuple[int, ...], dims: tuple[int | None, ...]) -> None:
        if len(dims) != len(self.axes):
            raise self._wrong(f"{name} has {len(dims)} placements; give a dim or None for each axis of {self.axes}")
        cut = [dim for dim in dims if dim is not None]
        for (axis, size), dim in zip(self.axes, dims, strict=True):
            if dim is None:
                continue
            if not 0 <= dim < len(shape) or 0 in shape or shape[dim] % size or cut.count(dim) > 1:
                raise self._wrong(
                    f"{name} of shape {shape} cannot be cut along dim {dim} into {size} pieces by axis {axis}; "
                    "use a dim that they divide, each dim once, or None"
                )

    def _wrong(self, problem: str) -> InputError:
        return InputError(f"sharding plan {self.name}: {problem}")

    @property
    def mesh_shape(self) -> tuple[int, ...]:
        """Sizes of the axes."""
        return tuple(size for _, size in self.axes)

    def dims_of(self, parameter: str) -> tuple[int | None, ...]:
        """Per axis the dim of `parameter` that it cuts, or None."""
        return dict(self.placements)[parameter]

    def is_whole(self, parameter: str) -> bool:
        """True if every rank holds all of `parameter`."""
        return all(dim is None for dim in self.dims_of(parameter))

    def describe(self) -> str:
        """One line for the mesh and one per parameter, for people."""
        mesh = " x ".join(f"{size} ({name})" for name, size in self.axes)
        same = [name for name, _ in self.axes if name not in self.data_axes]
        lines = [f"plan {self.name} on a mesh of {mesh}"]
        if same:
            lines.append(f"  ranks along {', '.join(same)} see the same data")
        for name, shape in self.shapes:
            size = " x ".join(str(n) for n in shape)
            lines.append(f"  {name} ({size}): {self._where(shape, self.dims_of(name))}")
        return "\n".join(lines)

    def _where(self, shape: tuple[int, ...], dims: tuple[int | None, ...]) -> str:
        cuts = [
            f"dim {dim} cut into {size} pieces of {shape[dim] // size}"
            for (_, size), dim in zip(self.axes, dims, strict=True)
            if dim is not None
        ]
        return ", ".join(cuts) or "whole on every rank"
