"""The known entries of a tensor, checked once here, so that nothing later meets a value it cannot use."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from distsam.environment import available_bytes, free_here, in_units
from distsam.errors import ArgumentError
from distsam.tasks.labels import Mode

# Squares of larger values overflow float64 sums, so no variance and no R2 could be computed from them.
_LARGEST_VALUE = 1e150
# And where all are smaller than this, squares are 0, and the values would be taken for constant.
_SMALLEST_LARGEST = 1e-150


@dataclass(frozen=True, eq=False)
class Entries:
    """The entries of a tensor that are known; every other entry is missing.

    Args:
        indices: (N, order) int64, no row twice, each within `shape`.
        values: (N,) float64, finite.
        shape: sizes of the modes of the full tensor.
        name: what to call the tensor in reports.
        modes: what the positions of each mode are called; () where they came without names.
        value_name: what the values are called.
        notes: one line for people on each thing in the data that they may not have meant.
    """

    indices: np.ndarray
    values: np.ndarray
    shape: tuple[int, ...]
    name: str
    modes: tuple[Mode, ...] = ()
    value_name: str = "value"
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.values)

    def sha256(self) -> str:
        """Hexadecimal digest of shape, indices, values and labels: the same for the same data in the same order."""
        digest = hashlib.sha256(repr(self.shape).encode())
        digest.update(self.indices.tobytes())
        digest.update(self.values.tobytes())
        if self.modes:
            digest.update(repr([(mode.name, mode.labels) for mode in self.modes]).encode())
        return digest.hexdigest()


class Origin(NamedTuple):
    """Where an array came from, for error messages.

    Args:
        argument: the argument that gave it.
        place: file, and array within it; "" where the argument is the array itself.
    """

    argument: str
    place: str = ""

    def within(self, place: str) -> "Origin":
        """The same argument, one step further in."""
        return Origin(self.argument, f"{self.place}: {place}" if self.place else place)

    def error(self, problem: str) -> ArgumentError:
        """An error about this array."""
        return ArgumentError(self.argument, f"{self.place}: {problem}" if self.place else problem)


_TENSOR, _ENTRIES = Origin("tensor"), Origin("entries")


def entries_from_dense(tensor: np.ndarray, *, name: str = "tensor", origin: Origin = _TENSOR) -> Entries:
    """The entries of a dense array; NaN marks a missing one, and so does the mask of a numpy masked array.

    Args:
        tensor: at least two modes, dtype float, integer or bool; becomes float64.
        name: the `name` of the result.
        origin: where the array came from.

    Returns:
        The entries that are not NaN, in C order.

    Raises:
        ArgumentError: fewer than two modes, a mode of size 0, another dtype, an infinite value, or all NaN.
    """
    _check_dtype(tensor, origin)
    check_shape(tensor.shape, origin)
    tensor = _as_float64(tensor)
    _refuse_unusable(tensor, origin, "entry ")
    present = ~np.isnan(tensor)
    if not present.any():
        raise origin.error(f"all {tensor.size} entries are NaN (missing); at least one must be a number")
    return Entries(np.argwhere(present), tensor[present], tensor.shape, name)


def entries_from_coordinates(
    indices: np.ndarray,
    values: np.ndarray,
    shape: Sequence[int] | np.ndarray,
    *,
    name: str = "tensor",
    origin: Origin = _ENTRIES,
) -> Entries:
    """The entries of a tensor given one by one; a NaN value marks a missing entry here too.

    Args:
        indices: (N, order) of any integer dtype.
        values: (N,) float, integer or bool; becomes float64.
        shape: sizes of the modes.
        name: the `name` of the result.
        origin: where the arrays came from.

    Raises:
        ArgumentError: the three disagree, an index is outside the shape, an entry is there twice, a value is
            infinite, or no value is a number.
    """
    sizes = _check_shape_array(np.asarray(shape), origin)
    _check_dtype(values, origin.within("array 'values'"))
    if values.ndim != 1:
        raise origin.error(f"array 'values': has shape {values.shape}; it must be (number of entries,)")
    rows = check_indices(indices, sizes, origin.within("array 'indices'"))
    if len(rows) != len(values):
        raise origin.error(
            f"array 'indices' has {len(rows)} rows but 'values' has {len(values)}; each entry needs one of each"
        )
    numbers = _as_float64(values)
    _refuse_unusable(numbers, origin, "values")
    _refuse_duplicates(rows, origin)
    present = ~np.isnan(numbers)
    if not present.any():
        raise origin.error(f"array 'values' holds {len(numbers)} values and none is a number; give one at least")
    return Entries(rows[present], numbers[present], sizes, name)


def check_shape(shape: Sequence[int], origin: Origin) -> None:
    """Refuses a shape that is no tensor: fewer than two modes, or a mode of size 0."""
    shape = tuple(int(size) for size in shape)
    if len(shape) < 2:
        raise origin.error(f"shape {shape} has {len(shape)} modes; a tensor needs at least 2")
    for mode, size in enumerate(shape):
        if size < 1:
            raise origin.error(f"shape {shape} gives mode {mode} the size {size}; each must be at least 1")


def check_memory(needed_bytes: int, origin: Origin) -> None:
    """Refuses what needs more memory than there is, before any of it is taken."""
    available = available_bytes()
    if needed_bytes > available:
        raise origin.error(f"needs {in_units(needed_bytes)} of memory and {free_here(available)}; use smaller sizes")


def check_indices(indices: np.ndarray, shape: Sequence[int], origin: Origin) -> np.ndarray:
    """Checks that every row names an entry of a tensor of this shape.

    Returns:
        (N, order) int64.

    Raises:
        ArgumentError: not integers, not (N, order), or a row outside `shape`: the first such row is named.
    """
    order = len(shape)
    if indices.dtype.kind not in "iu":
        raise origin.error(f"has dtype {indices.dtype}; integers are needed")
    if indices.ndim != 2 or indices.shape[1] != order:
        hint = "; transpose it" if indices.ndim == 2 and indices.shape[0] == order else ""
        raise origin.error(
            f"has shape {indices.shape}; for a tensor of shape {tuple(shape)} it must be "
            f"(number of entries, {order}){hint}"
        )
    outside = (indices < 0) | (indices >= np.asarray(shape, dtype=np.int64))
    if outside.any():
        row, mode = np.argwhere(outside)[0]
        entry = tuple(int(index) for index in indices[row])
        raise origin.error(
            f"row {row} is {entry}, but mode {mode} has size {shape[mode]}: its index must be 0 to {shape[mode] - 1}"
        )
    return indices.astype(np.int64)


def _check_shape_array(shape: np.ndarray, origin: Origin) -> tuple[int, ...]:
    if shape.ndim != 1 or shape.dtype.kind not in "iu":
        raise origin.error(
            f"array 'shape': has dtype {shape.dtype} and shape {shape.shape}; it must list one integer size per mode"
        )
    sizes = tuple(int(size) for size in shape)
    check_shape(sizes, origin.within("array 'shape'"))
    return sizes


def _check_dtype(array: np.ndarray, origin: Origin) -> None:
    if array.dtype.hasobject:
        raise origin.error(f"holds Python objects (dtype {array.dtype}); real numbers are needed")
    if array.dtype.kind not in "biuf":
        raise origin.error(f"has dtype {array.dtype}; real numbers (float, integer or bool) are needed")


def _as_float64(array: np.ndarray) -> np.ndarray:
    # A long double beyond float64 becomes inf, which is refused right after.
    with np.errstate(over="ignore"):
        numbers = np.asarray(array, dtype=np.float64)
    # What a mask hides is missing: under it there may be any number, such as -999.
    return np.where(np.ma.getmaskarray(array), np.nan, numbers) if isinstance(array, np.ma.MaskedArray) else numbers


def _refuse_unusable(values: np.ndarray, origin: Origin, label: str) -> None:
    unusable = np.abs(values) > _LARGEST_VALUE  # False for NaN
    if not unusable.any():
        largest = float(np.nanmax(np.abs(values), initial=0.0))
        if 0 < largest < _SMALLEST_LARGEST:
            raise origin.error(
                f"the largest value is {largest:g} in size, and squares of values below {_SMALLEST_LARGEST:g} vanish; "
                "multiply all by a power of ten"
            )
        return
    where = tuple(int(index) for index in np.argwhere(unusable)[0])
    place = f"{label}{where}" if len(where) > 1 else f"{label}[{where[0]}]"
    raise origin.error(
        f"{place} is {values[where]}; values must be finite and at most {_LARGEST_VALUE:g} in size "
        "(NaN marks a missing one)"
    )


def _refuse_duplicates(indices: np.ndarray, origin: Origin) -> None:
    order = np.lexsort(indices.T)  # stable, and unlike flat positions safe for shapes beyond 2^63 entries
    again = np.flatnonzero((indices[order[1:]] == indices[order[:-1]]).all(axis=1))
    if not len(again):
        return
    first = again[np.argmin(order[again + 1])]
    entry = tuple(int(index) for index in indices[order[first]])
    raise origin.error(
        f"rows {order[first]} and {order[first + 1]} of array 'indices' are both {entry}; each entry may be given once"
    )
