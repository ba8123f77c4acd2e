"""The known entries of a tensor, checked once here, so that nothing later meets a value it cannot use."""

import hashlib
import math
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
        digest = EntriesDigest(self.shape)
        digest.add(self.indices)
        digest.add(self.values)
        return digest.hexdigest(self.modes)


class EntriesDigest:
    """`Entries.sha256` of entries that come in blocks: first the indices of all, then the values of all.

    Args:
        shape: of the tensor.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._sha256 = hashlib.sha256(repr(shape).encode())

    def add(self, block: np.ndarray) -> None:
        """The next (n, order) int64 indices or (n,) float64 values."""
        self._sha256.update(np.ascontiguousarray(block).data)

    def hexdigest(self, modes: Sequence[Mode]) -> str:
        """Of all that was added, and of the labels; call it once."""
        if modes:
            self._sha256.update(repr([(mode.name, mode.labels) for mode in modes]).encode())
        return self._sha256.hexdigest()


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
    tensor = check_dense(tensor, origin)
    present = ~np.isnan(tensor)
    return Entries(np.argwhere(present), tensor[present], tensor.shape, name)


def check_dense(tensor: np.ndarray, origin: Origin) -> np.ndarray:
    """The dense array in float64, NaN where an entry is missing; for what is refused see `entries_from_dense`."""
    _check_dtype(tensor.dtype, origin)
    check_shape(tensor.shape, origin)
    tensor = as_float64(tensor)
    refuse_large(tensor, origin, "entry ")
    refuse_vanishing(largest_size(tensor), origin)
    if np.isnan(tensor).all():
        raise origin.error(f"all {tensor.size} entries are NaN (missing); at least one must be a number")
    return tensor


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
    sizes = check_shape_array(np.asarray(shape), origin)
    check_values_form(values.dtype, values.shape, origin)
    rows = check_indices(indices, sizes, origin.within("array 'indices'"))
    check_lengths(len(rows), len(values), origin)
    numbers = as_float64(values)
    refuse_large(numbers, origin, "values")
    refuse_vanishing(largest_size(numbers), origin)
    refuse_duplicates(rows, sizes, origin)
    present = ~np.isnan(numbers)
    refuse_none(int(present.sum()), len(numbers), origin)
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
    check_indices_form(indices.dtype, indices.shape, shape, origin)
    refuse_outside(indices, shape, origin)
    return indices.astype(np.int64)


def check_indices_form(dtype: np.dtype, shape: Sequence[int], sizes: Sequence[int], origin: Origin) -> None:
    """Refuses an array that cannot hold indices into a tensor of these sizes: not integers, or not (N, order)."""
    order = len(sizes)
    if dtype.kind not in "iu":
        raise origin.error(f"has dtype {dtype}; integers are needed")
    if len(shape) != 2 or shape[1] != order:
        hint = "; transpose it" if len(shape) == 2 and shape[0] == order else ""
        raise origin.error(
            f"has shape {tuple(shape)}; for a tensor of shape {tuple(sizes)} it must be "
            f"(number of entries, {order}){hint}"
        )


def refuse_outside(indices: np.ndarray, sizes: Sequence[int], origin: Origin, first_row: int = 0) -> None:
    """Names the first row that is no entry of a tensor of these sizes; rows count from `first_row`."""
    outside = (indices < 0) | (indices >= np.asarray(sizes, dtype=np.int64))
    if outside.any():
        row, mode = np.argwhere(outside)[0]
        entry = tuple(int(index) for index in indices[row])
        raise origin.error(
            f"row {first_row + row} is {entry}, but mode {mode} has size {sizes[mode]}: its index must be 0 to "
            f"{sizes[mode] - 1}"
        )


def check_shape_array(shape: np.ndarray, origin: Origin) -> tuple[int, ...]:
    """The sizes that an array lists, one a mode."""
    if shape.ndim != 1 or shape.dtype.kind not in "iu":
        raise origin.error(
            f"array 'shape': has dtype {shape.dtype} and shape {shape.shape}; it must list one integer size per mode"
        )
    sizes = tuple(int(size) for size in shape)
    check_shape(sizes, origin.within("array 'shape'"))
    return sizes


def check_values_form(dtype: np.dtype, shape: Sequence[int], origin: Origin) -> None:
    """Refuses an array of values that are no real numbers, or that is not (N,)."""
    _check_dtype(dtype, origin.within("array 'values'"))
    if len(shape) != 1:
        raise origin.error(f"array 'values': has shape {tuple(shape)}; it must be (number of entries,)")


def check_lengths(num_rows: int, num_values: int, origin: Origin) -> None:
    """Refuses rows of indices and values that are not as many."""
    if num_rows != num_values:
        raise origin.error(
            f"array 'indices' has {num_rows} rows but 'values' has {num_values}; each entry needs one of each"
        )


def _check_dtype(dtype: np.dtype, origin: Origin) -> None:
    if dtype.hasobject:
        raise origin.error(f"holds Python objects (dtype {dtype}); real numbers are needed")
    if dtype.kind not in "biuf":
        raise origin.error(f"has dtype {dtype}; real numbers (float, integer or bool) are needed")


def as_float64(array: np.ndarray) -> np.ndarray:
    """The numbers in float64, NaN under the mask of a numpy masked array."""
    # A long double beyond float64 becomes inf, which is refused right after.
    with np.errstate(over="ignore"):
        numbers = np.asarray(array, dtype=np.float64)
    # What a mask hides is missing: under it there may be any number, such as -999.
    return np.where(np.ma.getmaskarray(array), np.nan, numbers) if isinstance(array, np.ma.MaskedArray) else numbers


def refuse_large(values: np.ndarray, origin: Origin, label: str, first: int = 0) -> None:
    """Names the first value that is infinite or too large; values of one dim count from `first`."""
    unusable = np.abs(values) > _LARGEST_VALUE  # False for NaN
    if not unusable.any():
        return
    where = tuple(int(index) for index in np.argwhere(unusable)[0])
    place = f"{label}{where}" if len(where) > 1 else f"{label}[{first + where[0]}]"
    raise origin.error(
        f"{place} is {values[where]}; values must be finite and at most {_LARGEST_VALUE:g} in size "
        "(NaN marks a missing one)"
    )


def largest_size(values: np.ndarray) -> float:
    """The largest value in size, 0 where there is none."""
    return float(np.nanmax(np.abs(values), initial=0.0))


def refuse_vanishing(largest: float, origin: Origin) -> None:
    """Refuses values of which the largest is so small that all squares are 0."""
    if 0 < largest < _SMALLEST_LARGEST:
        raise origin.error(
            f"the largest value is {largest:g} in size, and squares of values below {_SMALLEST_LARGEST:g} vanish; "
            "multiply all by a power of ten"
        )


def refuse_none(num_present: int, num_values: int, origin: Origin) -> None:
    """Refuses values of which none is a number."""
    if not num_present:
        raise origin.error(f"array 'values' holds {num_values} values and none is a number; give one at least")


def refuse_duplicates(
    indices: np.ndarray, sizes: Sequence[int], origin: Origin, rows: np.ndarray | None = None
) -> None:
    """Names two rows that are the same entry.

    Args:
        indices: (N, order), each row within `sizes`.
        sizes: of the modes.
        origin: where the indices came from.
        rows: (N,) ascending numbers of the rows, for the message; None: 0, 1, ...
    """
    if math.prod(sizes) < 2**63 and not _repeats(np.ravel_multi_index(tuple(indices.T), tuple(sizes))):
        return
    order = np.lexsort(indices.T)  # stable, and unlike flat positions safe for shapes beyond 2^63 entries
    again = np.flatnonzero((indices[order[1:]] == indices[order[:-1]]).all(axis=1))
    if not len(again):
        return
    first = again[np.argmin(order[again + 1])]
    entry = tuple(int(index) for index in indices[order[first]])
    one, other = order[first : first + 2] if rows is None else rows[order[first : first + 2]]
    raise origin.error(f"rows {one} and {other} of array 'indices' are both {entry}; each entry may be given once")


def _repeats(positions: np.ndarray) -> bool:
    """Whether a number is there twice; sorts them in place."""
    positions.sort()
    return bool((positions[1:] == positions[:-1]).any())
