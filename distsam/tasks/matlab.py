"""Tensors in MATLAB's .mat files, of version 5 by scipy, of version 7.3 by h5py, of which this is the one importer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import loadmat

from distsam.errors import ArgumentError
from distsam.tasks.entries import Entries, Origin, entries_from_dense
from distsam.tasks.files import regular_file
from distsam.tasks.labels import Mode

_KINDS = "a .mat file"
_HDF5 = b"\x89HDF\r\n\x1a\n"
# MATLAB writes a block of text of its own before it.
_PLACES_OF_HDF5 = (0, 512)


def read_mat(path: str | Path, value: str | None = None, modes: Sequence[str] | None = None) -> Entries:
    """The entries of an array in a .mat file; NaN marks a missing one.

    Args:
        path: the file.
        value: the variable; None: the only array of numbers in it with more than one element.
        modes: names for the modes; None: none.

    Returns:
        Entries; with names of modes, their labels are the positions from 0 on.

    Raises:
        ArgumentError: of `path`, `value`, `modes` or `source`: no such file or variable, variables among which cannot
            be chosen, another number of modes, or numbers that no tensor can have; h5py is not installed.
    """
    origin = Origin("path", repr(str(path)))
    file = regular_file(path, origin, _KINDS)
    name, dense = _read(file, value, origin)
    origin = origin.within(f"variable {name!r}")
    entries = entries_from_dense(dense, name=file.stem, origin=origin)
    if modes is not None and (len(modes) != dense.ndim or len(set(modes)) < len(modes)):
        raise ArgumentError("modes", f"{list(modes)}: give {dense.ndim} different names, one for each mode")
    named = tuple(Mode(mode, tuple(range(size))) for mode, size in zip(modes or (), dense.shape, strict=False))
    return Entries(entries.indices, entries.values, entries.shape, file.stem, named, name)


def _read(file: Path, value: str | None, origin: Origin) -> tuple[str, np.ndarray]:
    try:
        with file.open("rb") as stream:
            start = stream.read(_PLACES_OF_HDF5[-1] + len(_HDF5))
        if any(start[place:].startswith(_HDF5) for place in _PLACES_OF_HDF5):
            return _read_hdf5(file, value, origin)
        arrays = {name: found for name, found in loadmat(file).items() if not name.startswith("__")}
        name = _chosen({n: a.shape for n, a in arrays.items() if _is_numeric(a)}, list(arrays), value, origin)
        return name, arrays[name]
    except ArgumentError:
        raise
    except Exception as error:  # of any type, whichever library reads it
        text = " ".join(str(error).split())[:200] or type(error).__name__
        raise origin.error(f"cannot be read ({text}); write it again with MATLAB's save") from None


def _read_hdf5(file: Path, value: str | None, origin: Origin) -> tuple[str, np.ndarray]:
    try:
        import h5py
    except ImportError as error:
        raise ArgumentError(
            "source", f"h5py is not installed or cannot be imported ({error}); pip install 'distsam[netcdf]'"
        ) from None
    with h5py.File(file, "r") as opened:
        arrays = {n: item for n, item in opened.items() if isinstance(item, h5py.Dataset) and item.dtype.kind in "fiub"}
        name = _chosen({n: item.shape for n, item in arrays.items()}, list(opened), value, origin)
        # MATLAB stores the first index as the fastest one.
        return name, np.asarray(arrays[name][()]).T


def _is_numeric(array: Any) -> bool:
    """Cells, structs, texts and sparse matrices are no arrays of numbers."""
    return isinstance(array, np.ndarray) and array.dtype.kind in "fiub"


def _chosen(shapes: Mapping[str, tuple[int, ...]], names: Sequence[str], value: str | None, origin: Origin) -> str:
    if value is not None:
        if value not in shapes:
            what = "no array of real numbers" if value in names else f"no variable; there are {list(names)}"
            raise ArgumentError("value", f"{value!r} is {what} in {origin.place}; name the array of the values")
        return value
    found = [name for name, shape in shapes.items() if np.prod(shape) > 1]
    if len(found) == 1:
        return found[0]
    what = f"several arrays of numbers: {found}" if found else f"no array of numbers among {list(names)}"
    raise ArgumentError("value", f"{origin.place} has {what}; name the one of the values")
