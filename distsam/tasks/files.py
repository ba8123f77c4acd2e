"""Reads the user's .npy and .npz files: never unpickles, and names what is wrong with one that it refuses."""

import stat
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from distsam.errors import ArgumentError
from distsam.tasks.entries import (
    Entries,
    Origin,
    as_float64,
    check_indices,
    check_indices_form,
    check_lengths,
    check_shape_array,
    check_values_form,
    entries_from_coordinates,
    entries_from_dense,
    largest_size,
    refuse_large,
    refuse_outside,
    refuse_vanishing,
)
from distsam.tasks.labels import Mode
from distsam.tasks.observations import BLOCK, Block, DenseObservations, Observations
from distsam.tasks.stored_array import NPY_MAGIC, StoredArray, no_array

_ZIP_MAGICS = (b"PK\x03\x04", b"PK\x05\x06")
_COORDINATES = ("indices", "values", "shape")
_MAX_NAMES_SHOWN = 8
_KINDS = "a .npy or .npz file"


def read_entries(path: str | Path) -> Entries:
    """The entries in a .npy (dense, NaN = missing) or .npz file (one dense array, or indices, values, shape).

    Args:
        path: the file; its content decides which of the two it is, not its name.

    Raises:
        ArgumentError: no such file, neither format, pickled, damaged, or its arrays are no entries of a tensor.
    """
    origin = Origin("path", repr(str(path)))
    file = regular_file(path, origin, _KINDS)
    arrays = _read_arrays(file, origin, _names_for_entries)
    if "indices" in arrays:
        return entries_from_coordinates(**arrays, name=file.stem, origin=origin)
    [(array_name, dense)] = arrays.items()
    return entries_from_dense(dense, name=file.stem, origin=_origin_of(array_name, origin))


def stream_entries(path: str | Path) -> Observations:
    """The entries of `read_entries`, for one who goes through them in blocks instead of holding them all.

    Coordinates stay in the file. A dense array is held whole, without the indices of its entries.

    Raises:
        ArgumentError: as `read_entries`; what is wrong with coordinates is said when their blocks are read.
    """
    origin = Origin("path", repr(str(path)))
    file = regular_file(path, origin, _KINDS)
    arrays = _read_arrays(file, origin, _names_for_stream)
    if "shape" in arrays:
        return StoredObservations(file, check_shape_array(arrays["shape"], origin), origin)
    [(array_name, dense)] = arrays.items()
    return DenseObservations(dense, name=file.stem, origin=_origin_of(array_name, origin))


class StoredObservations:
    """The coordinates in a .npz file, read anew at every pass.

    Args:
        file: that has `indices` and `values`.
        shape: of the tensor.
        origin: what to name the file by.
    """

    modes: tuple[Mode, ...] = ()
    value_name = "value"
    notes: tuple[str, ...] = ()

    def __init__(self, file: Path, shape: tuple[int, ...], origin: Origin) -> None:
        self._file, self.shape, self.origin, self.name = file, shape, origin, file.stem

    def blocks(self) -> Iterator[Block]:
        """See `Observations`; checks what `entries_from_coordinates` checks, but duplicates.

        Raises:
            ArgumentError: as that, with the same words.
        """
        with _readable(self.origin), zipfile.ZipFile(self._file) as archive:
            indices, values = (StoredArray(archive, name, self.origin) for name in ("indices", "values"))
            of_indices, of_values = self.origin.within("array 'indices'"), self.origin
            check_values_form(values.dtype, values.shape, of_values)
            check_indices_form(indices.dtype, indices.shape, self.shape, of_indices)
            check_lengths(indices.shape[0], values.shape[0], self.origin)
            first, largest = 0, 0.0
            for rows, given in zip(indices.blocks(BLOCK), values.blocks(BLOCK), strict=True):
                refuse_outside(rows, self.shape, of_indices, first)
                numbers = as_float64(given)
                refuse_large(numbers, of_values, "values", first)
                largest, first = max(largest, largest_size(numbers)), first + len(rows)
                yield rows.astype(np.int64, copy=False), numbers
            refuse_vanishing(largest, of_values)


def read_indices(path: str | Path, shape: Sequence[int]) -> np.ndarray:
    """The entries to predict: a .npy file of (N, order) integers, or a .npz file with these as `indices`.

    Args:
        path: the file.
        shape: of the tensor that the indices point into.

    Returns:
        (N, order) int64.

    Raises:
        ArgumentError: the file cannot be read, or a row is no entry of the tensor.
    """
    origin = Origin("path", repr(str(path)))
    file = regular_file(path, origin, _KINDS)
    [(array_name, indices)] = _read_arrays(file, origin, _names_for_indices).items()
    return check_indices(indices, shape, _origin_of(array_name, origin))


def _names_for_entries(names: Sequence[str], origin: Origin) -> Sequence[str]:
    given = [name for name in _COORDINATES if name in names]
    if "tensor" in names and "indices" in names:
        raise origin.error("holds both 'tensor' and 'indices'; keep the dense tensor or the coordinates")
    if "tensor" in names:
        return ["tensor"]
    if len(given) == len(_COORDINATES):
        return given
    if len(names) == 1 and not given:
        return names
    raise origin.error(
        f"holds {_listed(names)}; it must hold one dense array (alone, or named 'tensor') "
        "or 'indices', 'values' and 'shape'"
    )


def _names_for_stream(names: Sequence[str], origin: Origin) -> Sequence[str]:
    chosen = _names_for_entries(names, origin)
    return ["shape"] if "indices" in chosen else chosen


def _names_for_indices(names: Sequence[str], origin: Origin) -> Sequence[str]:
    if "indices" in names:
        return ["indices"]
    raise origin.error(f"holds {_listed(names)}; it must hold an array 'indices'")


def regular_file(path: str | Path, origin: Origin, wanted: str) -> Path:
    """The file at `path`, once it is known to be one that can be read without waiting.

    Args:
        path: of the file.
        origin: what to name it by.
        wanted: for messages, such as "a .npy or .npz file".

    Raises:
        ArgumentError: there is none, or it is a folder, a pipe or a device.
    """
    try:
        file = Path(path).expanduser()
    except RuntimeError:  # ~name of nobody
        file = Path(path)
    try:
        mode = file.stat().st_mode
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        what = "does not exist" if missing else f"is no file that can be opened ({getattr(error, 'strerror', error)})"
        raise origin.error(f"{what}; give the path of {wanted}") from None
    if not stat.S_ISREG(mode):  # a pipe would be waited for
        what = "is a folder" if stat.S_ISDIR(mode) else "is no regular file"
        raise origin.error(f"{what}; give the path of {wanted}")
    return file


def _read_arrays(
    file: Path, origin: Origin, choose: Callable[[Sequence[str], Origin], Sequence[str]]
) -> dict[str, np.ndarray]:
    """The chosen arrays of a .npz file, or the array of a .npy file under the name ''."""
    # Opened here, because numpy leaves a file open that it fails to read.
    with _readable(origin), file.open("rb") as opened:
        return _load(opened, origin, choose)


@contextmanager
def _readable(origin: Origin) -> Iterator[None]:
    """Says what is wrong with a file that cannot be read."""
    try:
        yield
    except ArgumentError:
        raise
    except MemoryError as error:
        raise origin.error(f"does not fit in memory: {error}; give a smaller tensor") from error
    except Exception as error:  # numpy, zipfile, zlib and tokenize each have their own for a damaged file
        raise origin.error(_why_unreadable(error)) from error


def _load(
    opened: BinaryIO, origin: Origin, choose: Callable[[Sequence[str], Origin], Sequence[str]]
) -> dict[str, np.ndarray]:
    start = opened.read(len(NPY_MAGIC))
    opened.seek(0)
    if start == NPY_MAGIC:
        return {"": np.load(opened, allow_pickle=False)}
    if not start.startswith(_ZIP_MAGICS):
        raise origin.error("is neither a .npy nor a .npz file; write it with numpy.save or numpy.savez")
    with np.load(opened, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in choose(archive.files, origin)}
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):  # numpy gives the bytes of a member that is no array
            raise no_array(name, origin)
    return arrays


def _why_unreadable(error: Exception) -> str:
    if "allow_pickle" in str(error):
        return "holds pickled Python objects, which are never loaded; save arrays of numbers"
    if isinstance(error, PermissionError):
        return "may not be read by this user; give a file that may"
    why = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return f"cannot be read ({why}): it is damaged or cut short; write it again"


def _listed(names: Sequence[str]) -> str:
    if not names:
        return "no arrays"
    shown = ", ".join(repr(name) for name in names[:_MAX_NAMES_SHOWN])
    more = len(names) - _MAX_NAMES_SHOWN
    return f"the arrays {shown} and {more} more" if more > 0 else f"the arrays {shown}"


def _origin_of(array_name: str, origin: Origin) -> Origin:
    return origin.within(f"array '{array_name}'" if array_name else "the array")
