"""Tensors in netCDF files: one variable, its dimensions the modes, their coordinates the labels.

The one importer of xarray.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distsam.errors import ArgumentError
from distsam.tasks.entries import Entries, Origin, entries_from_dense
from distsam.tasks.files import regular_file
from distsam.tasks.labels import Mode

try:
    import h5netcdf  # noqa: F401  by which xarray reads version 4; version 3 it reads by scipy
    import xarray as xr
except ImportError as error:
    raise ArgumentError(
        "source", f"xarray or h5netcdf is not installed or cannot be imported ({error}); pip install 'distsam[netcdf]'"
    ) from None

_KINDS = "a netCDF file"


def read_netcdf(path: str | Path, value: str | None = None, modes: Sequence[str] | None = None) -> Entries:
    """The entries in a netCDF file of version 3 or 4; NaN and what the file marks as missing is no known entry.

    Args:
        path: the file.
        value: the variable; None: the only one of real numbers with two dimensions or more.
        modes: its dimensions in the order of the tensor's modes; None: as they stand in the file.

    Returns:
        Entries with labels: whole numbers stay what they are, all else becomes text (a date in ISO form); a dimension
        without coordinate has positions, from 0 on.

    Raises:
        ArgumentError: of `path`, `value` or `modes`: no such file, variable or dimension, variables among which cannot
            be chosen, a label that is there twice, or numbers that no tensor can have.
    """
    origin = Origin("path", repr(str(path)))
    file = regular_file(path, origin, _KINDS)
    try:
        with xr.open_dataset(file, engine=_engine(file)) as dataset:
            array = dataset[_chosen(dataset, value, origin)].load()
    except ArgumentError:
        raise
    except Exception as error:  # of any type, whichever library reads it
        text = " ".join(str(error).split())[:200] or type(error).__name__
        raise origin.error(f"cannot be read ({text}); write it again as {_KINDS}") from None
    name, origin = str(array.name), origin.within(f"variable {str(array.name)!r}")
    dims = [str(dim) for dim in array.dims]
    if modes is not None and sorted(modes) != sorted(dims):
        raise ArgumentError("modes", f"{list(modes)} are not the dimensions of {origin.place}, which are {dims}")
    array = array.transpose(*(modes or dims))
    found = tuple(_mode(array, str(dim), origin) for dim in array.dims)
    entries = entries_from_dense(np.asarray(array.values), name=file.stem, origin=origin)
    return Entries(entries.indices, entries.values, entries.shape, file.stem, found, name)


def _engine(file: Path) -> str:
    """Version 4 is a HDF5 file, version 3 one of its own."""
    with file.open("rb") as stream:
        return "scipy" if stream.read(3) == b"CDF" else "h5netcdf"


def _chosen(dataset: Any, value: str | None, origin: Origin) -> str:
    names = [str(name) for name in dataset.data_vars]
    if value is not None:
        if value not in names:
            raise ArgumentError("value", f"{value!r} is no variable of {origin.place}; it has {names}")
        return value
    found = [name for name in names if dataset[name].ndim >= 2 and dataset[name].dtype.kind == "f"]
    if len(found) == 1:
        return found[0]
    what = f"several such variables: {found}" if found else f"none among {names}"
    raise ArgumentError(
        "value", f"{origin.place} has {what}, of real numbers with two dimensions or more; name the one of the values"
    )


def _mode(array: Any, dim: str, origin: Origin) -> Mode:
    """The labels of a dimension."""
    if dim not in array.coords:
        return Mode(dim, tuple(range(array.sizes[dim])))
    values = array.coords[dim].values
    if values.dtype.kind == "M":
        labels = np.datetime_as_string(values, unit="auto").tolist()
    else:
        labels = [label if isinstance(label, int) else str(label) for label in values.tolist()]
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise origin.error(f"coordinate {dim!r} has {twice!r} twice; every position needs a label of its own")
    return Mode(dim, tuple(labels))
