"""Where every weight lives, as frozen data: computed from shapes alone, printed, then applied from outside."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from distsam.errors import InputError
from distsam.tensornet import NetworkSpec

Axes = tuple[tuple[str, int], ...]


def coordinate_of(rank: int, axes: Axes) -> tuple[int, ...]:
    """The position of a rank along every axis, the last one running fastest."""
    found = []
    for _, size in reversed(axes):
        rank, position = divmod(rank, size)
        found.append(position)
    return tuple(reversed(found))


@dataclass(frozen=True)
class NetworkWeights:
    """A network within a model, by the names of its parameters.

    Args:
        spec: what the cores are.
        parameters: K names, in the order of `spec.cores`.
    """

    spec: NetworkSpec
    parameters: tuple[str, ...]


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

    def place(
        self, named_shapes: Mapping[str, Sequence[int]], axes: Axes, networks: Sequence[NetworkWeights] = ()
    ) -> "ShardPlan":
        """The placement of every parameter on these axes.

        Args:
            named_shapes: parameter -> its full shape.
            axes: what `axes` gave.
            networks: those that can be contracted in pieces; a parameter of none is only ever gathered.

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
        placements: (parameter, per axis the dim that it cuts, or None where its ranks hold the same). Pieces are those
            of torch.chunk: all of one length but the last ones, which may be shorter, or empty.

    Raises:
        InputError: axes that are none, or named twice; a placement that is missing, too many, of another length than
            the axes, or that cuts a dim that does not exist, is cut already, or has no elements.
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
            if dim is not None and (not 0 <= dim < len(shape) or 0 in shape or cut.count(dim) > 1):
                raise self._wrong(
                    f"{name} of shape {shape} cannot be cut along dim {dim} into {size} pieces by axis {axis}; "
                    "use one of its dims, each dim once, or None"
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

    def piece_of(self, parameter: str, coordinate: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Where the piece of `parameter` begins, and its shape, on the rank at `coordinate` of the mesh."""
        shape = list(dict(self.shapes)[parameter])
        offsets = [0] * len(shape)
        for (_, size), dim, position in zip(self.axes, self.dims_of(parameter), coordinate, strict=True):
            if dim is not None:
                length, step = shape[dim], -(-shape[dim] // size)
                offsets[dim] = min(position * step, length)
                shape[dim] = min((position + 1) * step, length) - offsets[dim]
        return tuple(offsets), tuple(shape)

    @property
    def contracted_axes(self) -> tuple[str, ...]:
        """The axes that cut and are no data axes: their ranks compute together, each with its pieces of the cores."""
        used = {n for _, dims in self.placements for n, dim in enumerate(dims) if dim is not None}
        return tuple(name for n, (name, _) in enumerate(self.axes) if n in used and name not in self.data_axes)

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
            f"dim {dim} cut into {size} pieces of {'at most ' if shape[dim] % size else ''}{-(-shape[dim] // size)}"
            for (_, size), dim in zip(self.axes, dims, strict=True)
            if dim is not None
        ]
        return ", ".join(cuts) or "whole on every rank"
