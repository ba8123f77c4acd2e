"""Where every weight lives, as frozen data: computed from shapes alone, printed, then applied from outside."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from math import prod
from typing import Protocol

from distsam.errors import InputError
from distsam.sharding.plan_file import check_axes, fields_of, text_of
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
        routed: an axis whose ranks hold rows of one core, and see the data of these rows; and where each rank's rows
            begin, with their number at the end. None: there is no such axis.

    Raises:
        InputError: axes that are none, or named twice; a placement that is missing, too many, of another length than
            the axes, or that cuts a dim that does not exist, is cut already, or has no elements; bounds of rows that do
            not rise from 0 to their number.
    """

    name: str
    axes: Axes
    data_axes: tuple[str, ...]
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    placements: tuple[tuple[str, tuple[int | None, ...]], ...]
    routed: tuple[str, tuple[int, ...]] | None = None

    def __post_init__(self) -> None:
        names = [name for name, _ in self.axes]
        if not names or len(set(names)) < len(names) or not set(self.data_axes) <= set(names):
            raise self._wrong(f"axes {self.axes} with the data axes {self.data_axes}; name each axis once")
        if [name for name, _ in self.placements] != [name for name, _ in self.shapes]:
            raise self._wrong("it needs a placement for each parameter, in the order of the shapes")
        for (name, shape), (_, dims) in zip(self.shapes, self.placements, strict=True):
            self._check_placement(name, shape, dims)

        if self.routed is not None:
            self._check_routed(*self.routed)

    def _check_routed(self, axis: str, bounds: tuple[int, ...]) -> None:
        lengths = {self._length_along(name, axis) for name in self.parameters_cut_by(axis)}
        if axis not in self.data_axes or len(bounds) != dict(self.axes)[axis] + 1 or lengths != {bounds[-1]}:
            raise self._wrong(
                f"rows {bounds} on axis {axis}; give a data axis, and one range of the rows for each rank"
            )
        if bounds[0] != 0 or list(bounds) != sorted(bounds):
            raise self._wrong(f"rows {bounds}; they must rise from 0")

    def parameters_cut_by(self, axis: str) -> tuple[str, ...]:
        """Those that an axis cuts."""
        place = [name for name, _ in self.axes].index(axis)
        return tuple(name for name, dims in self.placements if dims[place] is not None)

    def _length_along(self, parameter: str, axis: str) -> int:
        dim = self.dims_of(parameter)[[name for name, _ in self.axes].index(axis)]
        assert dim is not None
        return self._shape_of[parameter][dim]

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

    @property
    def num_ranks(self) -> int:
        """Of the mesh."""
        return prod(self.mesh_shape)

    @property
    def mesh(self) -> str:
        """The axes for people, "4 (replicate) x 2 (shard)"."""
        return " x ".join(f"{size} ({name})" for name, size in self.axes)

    # A model may have thousands of parameters, each asked for by name.
    @cached_property
    def _shape_of(self) -> dict[str, tuple[int, ...]]:
        return dict(self.shapes)

    @cached_property
    def _dims_of(self) -> dict[str, tuple[int | None, ...]]:
        return dict(self.placements)

    def dims_of(self, parameter: str) -> tuple[int | None, ...]:
        """Per axis the dim of `parameter` that it cuts, or None."""
        return self._dims_of[parameter]

    def is_whole(self, parameter: str) -> bool:
        """True if every rank holds all of `parameter`."""
        return all(dim is None for dim in self.dims_of(parameter))

    def piece_of(self, parameter: str, coordinate: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Where the piece of `parameter` begins, and its shape, on the rank at `coordinate` of the mesh."""
        shape = list(self._shape_of[parameter])
        offsets = [0] * len(shape)
        for (axis, _), dim, position in zip(self.axes, self.dims_of(parameter), coordinate, strict=True):
            if dim is not None:
                start, stop = self.range_along(axis, shape[dim], position)
                offsets[dim], shape[dim] = start, stop - start
        return tuple(offsets), tuple(shape)

    def range_along(self, axis: str, length: int, position: int) -> tuple[int, int]:
        """Where the piece of a dim of `length` begins and ends on the rank at `position` of an axis that cuts it."""
        if self.routed is not None and axis == self.routed[0]:
            return self.routed[1][position], self.routed[1][position + 1]
        return chunk(length, dict(self.axes)[axis], position)

    @cached_property
    def contracted_axes(self) -> tuple[str, ...]:
        """The axes that cut and are no data axes: their ranks compute together, each with its pieces of the cores."""
        return tuple(name for name, _ in self.axes if name not in self.data_axes and self.parameters_cut_by(name))

    @cached_property
    def piece_axes(self) -> tuple[str, ...]:
        """The axes along which a rank computes with the pieces that it holds: `contracted_axes`, and the routed one."""
        routed = () if self.routed is None else (self.routed[0],)
        return tuple(name for name, _ in self.axes if name in (*self.contracted_axes, *routed))

    @cached_property
    def gathered_axes(self) -> tuple[str, ...]:
        """The data axes but the routed one: what they cut FSDP2 gathers for each pass."""
        return tuple(name for name in self.data_axes if name not in self.piece_axes)

    def describe(self) -> str:
        """One line for the mesh and one per parameter, for people."""
        same = [name for name, _ in self.axes if name not in self.data_axes]
        lines = [f"plan {self.name} on a mesh of {self.mesh}"]
        if same:
            lines.append(f"  ranks along {', '.join(same)} see the same data")
        if self.routed is not None:
            lines.append(f"  ranks along {self.routed[0]} see the data of the rows that they hold")
        for name, shape in self.shapes:
            size = " x ".join(str(n) for n in shape)
            lines.append(f"  {name} ({size}): {self._where(shape, self.dims_of(name))}")
        return "\n".join(lines)

    def to_json(self) -> str:
        """The text of a file from which `from_json` makes this very plan.

        Raises:
            InputError: an axis of one rank beside others cuts parameters: the same plan without it can be written.
        """
        content = {field.name: getattr(self, field.name) for field in fields(self)}
        check_axes(content, f"sharding plan {self.name}")
        return text_of(content)

    @classmethod
    def from_json(cls, text: str, source: str = "plan") -> "ShardPlan":
        """The plan that a text of `to_json` holds.

        Args:
            text: all of the file.
            source: what messages call it: the file's path.

        Raises:
            InputError: with `source` and the key: no such text, or a plan that cannot be.
        """
        found = fields_of(text, source)
        check_axes(found, source)
        try:
            return cls(**found)
        except InputError as error:
            raise InputError(f"{source}: {error}") from None

    def _where(self, shape: tuple[int, ...], dims: tuple[int | None, ...]) -> str:
        cuts = []
        for (axis, size), dim in zip(self.axes, dims, strict=True):
            if dim is not None:
                ranges = [self.range_along(axis, shape[dim], position) for position in range(size)]
                lengths = [stop - start for start, stop in ranges]
                at_most = "at most " if min(lengths) < max(lengths) else ""
                cuts.append(f"dim {dim} cut into {size} pieces of {at_most}{max(lengths)}")
        return ", ".join(cuts) or "whole on every rank"


def chunk(length: int, num_pieces: int, position: int) -> tuple[int, int]:
    """Where a piece begins and ends, as torch.chunk cuts: all of one length but the last, which may be empty."""
    step = -(-length // num_pieces)
    return min(position * step, length), min((position + 1) * step, length)
