"""Reads the user's .npy and .npz files: never unpickles, and names what is wrong with one that it refuses."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from distsam.errors import InputError
from distsam.tasks.entries import Entries, check_indices, entries_from_coordinates, entries_from_dense

_NPY_MAGIC = b"\x93NUMPY"
_ZIP_MAGICS = (b"PK\x03\x04", b"PK\x05\x06")
_COORDINATES = ("indices", "values", "shape")
_MAX_NAMES_SHOWN = 8


def read_entries(path: str | Path, *, key: str = "data.path") -> Entries:
    """The entries in a .npy (dense, NaN = missing) or .npz file (one dense array, or indices, values, shape).

    Args:
        path: the file; its content decides which of the two it is, not its name.
        key: the config key or option that named the file, for error messages.

    Raises:
        InputError: no such file, neither format, pickled, damaged, or its arrays are no entries of a tensor.
    """
    file, origin = Path(path).expanduser(), f"{key}={str(path)!r}"
    arrays = _read_arrays(file, origin, _names_for_entries)
    if "indices" in arrays:
        return entries_from_coordinates(**arrays, name=file.stem, origin=origin)
    [(array_name, dense)] = arrays.items()
    return entries_from_dense(dense, name=file.stem, origin=_origin_of(array_name, origin))


def read_indices(path: str | Path, shape: Sequence[int], *, key: str = "entries") -> np.ndarray:
    """The entries to predict: a .npy file of (N, order) integers, or a .npz file with these as `indices`.

    Args:
        path: the file.
        shape: of the tensor that the indices point into.
        key: the config key or option that named the file, for error messages.

    Returns:
        (N, order) int64.

    Raises:
        InputError: the file cannot be read, or a row is no entry of the tensor.
    """
    file, origin = Path(path).expanduser(), f"{key}={str(path)!r}"
    [(array_name, indices)] = _read_arrays(file, origin, _names_for_indices).items()
    return check_indices(indices, shape, _origin_of(array_name, origin))


def _names_for_entries(names: Sequence[str], origin: str) -> Sequence[str]:
    given = [name for name in _COORDINATES if name in names]
    if "tensor" in names and "indices" in names:
        raise InputError(f"{origin} holds both 'tensor' and 'indices'; keep the dense tensor or the coordinates")
    if "tensor" in names:
        return ["tensor"]
    if len(given) == len(_COORDINATES):
        return given
    if len(names) == 1 and not given:
        return names
    raise InputError(
        f"{origin} holds {_listed(names)}; it must hold one dense array (alone, or named 'tensor') "
        "or 'indices', 'values' and 'shape'"
    )


def _names_for_indices(names: Sequence[str], origin: str) -> Sequence[str]:
    if "indices" in names:
        return ["indices"]
    raise InputError(f"{origin} holds {_listed(names)}; it must hold an array 'indices'")


def _read_arrays(
    file: Path, origin: str, choose: Callable[[Sequence[str], str], Sequence[str]]
) -> dict[str, np.ndarray]:
    """The chosen arrays of a .npz file, or the array of a .npy file under the name ''."""
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "does not exist"
        raise InputError(f"{origin} {what}; give the path of a .npy or .npz file")
    try:
        # Opened here, because numpy leaves a file open that it fails to read.
        with file.open("rb") as opened:
            return _load(opened, origin, choose)
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(f"{origin} does not fit in memory: {error}; give a smaller tensor") from error
    except Exception as error:  # numpy, zipfile, zlib and tokenize each have their own for a damaged file
        raise InputError(_why_unreadable(error, origin)) from error


def _load(
    opened: BinaryIO, origin: str, choose: Callable[[Sequence[str], str], Sequence[str]]
) -> dict[str, np.ndarray]:
    start = opened.read(len(_NPY_MAGIC))
    opened.seek(0)
    if start == _NPY_MAGIC:
        return {"": np.load(opened, allow_pickle=False)}
    if not start.startswith(_ZIP_MAGICS):
        raise InputError(f"{origin} is neither a .npy nor a .npz file; write it with numpy.save or numpy.savez")
    with np.load(opened, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in choose(archive.files, origin)}
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):  # numpy gives the bytes of a member that is no array
            raise InputError(f"{origin}: '{name}' is no numpy array; write the file with numpy.savez")
    return arrays


def _why_unreadable(error: Exception, origin: str) -> str:
    if "allow_pickle" in str(error):
        return f"{origin} holds pickled Python objects, which are never loaded; save arrays of numbers"
    if isinstance(error, PermissionError):
        return f"{origin} may not be read by this user; give a file that may"
    why = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return f"{origin} cannot be read ({why}): it is damaged or cut short; write it again"


def _listed(names: Sequence[str]) -> str:
    if not names:
        return "no arrays"
    shown = ", ".join(repr(name) for name in names[:_MAX_NAMES_SHOWN])
    more = len(names) - _MAX_NAMES_SHOWN
    return f"the arrays {shown} and {more} more" if more > 0 else f"the arrays {shown}"


def _origin_of(array_name: str, origin: str) -> str:
    return f"{origin}: array '{array_name}'" if array_name else f"{origin}: the array"
