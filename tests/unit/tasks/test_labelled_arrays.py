"""Tensors as netCDF and MATLAB files: values and labels as they stand there; what cannot be used is said."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from distsam.errors import ArgumentError
from distsam.tasks.entries import Entries

xr = pytest.importorskip("xarray")
h5py = pytest.importorskip("h5py")

from distsam.tasks.matlab import read_mat  # noqa: E402
from distsam.tasks.netcdf import read_netcdf  # noqa: E402

DENSE = np.array([[[1.5, np.nan], [2.5, 3.5]], [[4.5, 5.5], [np.nan, 6.5]], [[7.5, 8.5], [9.5, -1.0]]])


def dense_of(entries: Entries) -> np.ndarray:
    dense = np.full(entries.shape, np.nan)
    dense[tuple(entries.indices.T)] = entries.values
    return dense


def array() -> Any:
    days = np.array(["2024-01-01", "2024-01-02", "2024-01-03"], dtype="datetime64[ns]")
    coords = {"day": days, "city": ["Köln", "Wien"], "lat": [47.5, 50.0]}
    return xr.DataArray(DENSE, coords, ("day", "city", "lat"), name="rain")


def to_netcdf(dataset: Any, path: Path, engine: str = "h5netcdf") -> Path:
    dataset.to_netcdf(path, engine=engine)
    return path


@pytest.mark.parametrize("engine", ["h5netcdf", "scipy"])
def test_a_variable_of_a_netcdf_file_comes_with_its_coordinates(tmp_path: Path, engine: str) -> None:
    """Version 4 and version 3."""
    found = read_netcdf(to_netcdf(array(), tmp_path / "t.nc", engine))
    assert [(mode.name, mode.labels) for mode in found.modes] == [
        ("day", ("2024-01-01", "2024-01-02", "2024-01-03")),
        ("city", ("Köln", "Wien")),
        ("lat", ("47.5", "50.0")),
    ]
    assert (found.value_name, len(found)) == ("rain", 10)
    assert np.array_equal(dense_of(found), DENSE, equal_nan=True)


def test_what_a_netcdf_file_marks_as_missing_is_missing(tmp_path: Path) -> None:
    whole = array().fillna(-999.0)
    whole.encoding["_FillValue"] = -999.0
    found = read_netcdf(to_netcdf(whole, tmp_path / "t.nc"))
    assert np.array_equal(dense_of(found), DENSE, equal_nan=True)


def test_modes_of_a_netcdf_file_stand_in_the_order_that_is_asked_for(tmp_path: Path) -> None:
    path = to_netcdf(array().drop_vars("lat"), tmp_path / "t.nc")
    found = read_netcdf(path, modes=["lat", "day", "city"])
    assert [mode.name for mode in found.modes] == ["lat", "day", "city"]
    assert found.modes[0].labels == (0, 1)
    assert np.array_equal(dense_of(found), DENSE.transpose(2, 0, 1), equal_nan=True)


@pytest.mark.parametrize(
    ("value", "modes", "argument", "says"),
    [
        (None, None, "value", "has several such variables: ['rain', 'snow']"),
        ("hail", None, "value", "'hail' is no variable of"),
        ("snow", ["day", "city"], "modes", "are not the dimensions of"),
        ("twice", None, "path", "coordinate 'x' has 'a' twice"),
        ("one", None, "path", "at least 2"),
    ],
)
def test_what_cannot_be_chosen_in_a_netcdf_file_is_said(
    tmp_path: Path, value: str | None, modes: list[str] | None, argument: str, says: str
) -> None:
    twice = xr.DataArray(np.ones((2, 2), dtype=int), {"x": ["a", "a"]}, ("x", "y"))
    one = xr.DataArray(np.ones(3), dims=("z",))
    dataset = xr.Dataset({"rain": array(), "snow": array(), "twice": twice, "one": one})
    with pytest.raises(ArgumentError) as caught:
        read_netcdf(to_netcdf(dataset, tmp_path / "t.nc"), value, modes)
    assert caught.value.argument == argument
    assert says in str(caught.value)


def mat_7_3(path: Path, **arrays: np.ndarray) -> Path:
    """As MATLAB writes it: 512 bytes of its own before the HDF5 file, the first index the fastest."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, values in arrays.items():
            file[name] = values.T
    content = bytearray(path.read_bytes())
    content[:20] = b"MATLAB 7.3 MAT-file "
    path.write_bytes(content)
    return path


def mat_5(path: Path, **arrays: Any) -> Path:
    savemat(path, arrays)
    return path


@pytest.mark.parametrize("write", [mat_5, mat_7_3])
def test_an_array_of_a_mat_file_is_read_as_matlab_shows_it(tmp_path: Path, write: Any) -> None:
    path = write(tmp_path / "t.mat", rain=DENSE, rate=np.array([[0.5]]))
    found = read_mat(path)
    assert (found.value_name, found.modes) == ("rain", ())
    assert np.array_equal(dense_of(found), DENSE, equal_nan=True)
    named = read_mat(path, "rain", ["day", "city", "lat"])
    assert [(mode.name, mode.labels) for mode in named.modes][1] == ("city", (0, 1))


@pytest.mark.parametrize("write", [mat_5, mat_7_3])
@pytest.mark.parametrize(
    ("value", "modes", "argument", "says"),
    [
        (None, None, "value", "has several arrays of numbers: ['rain', 'snow']"),
        ("hail", None, "value", "'hail' is no variable; there are ['rain', 'snow']"),
        ("rain", ["a", "b"], "modes", "give 3 different names"),
        ("rain", ["a", "b", "a"], "modes", "give 3 different names"),
    ],
)
def test_what_cannot_be_chosen_in_a_mat_file_is_said(
    tmp_path: Path, write: Any, value: str | None, modes: list[str] | None, argument: str, says: str
) -> None:
    with pytest.raises(ArgumentError) as caught:
        read_mat(write(tmp_path / "t.mat", rain=DENSE, snow=DENSE), value, modes)
    assert caught.value.argument == argument
    assert says in str(caught.value)


def test_texts_and_cells_of_a_mat_file_are_no_tensors(tmp_path: Path) -> None:
    path = mat_5(tmp_path / "t.mat", rain=DENSE, note="abc", cells=np.array([[1, "x"]], dtype=object))
    assert read_mat(path).value_name == "rain"
    with pytest.raises(ArgumentError, match="'note' is no array of real numbers"):
        read_mat(path, "note")


@pytest.mark.parametrize("read", [read_mat, read_netcdf])
@pytest.mark.parametrize("content", [b"", b"abc", b"CDF\x01\x00", b"\x89HDF\r\n\x1a\n" + b"\x00" * 600])
def test_a_damaged_file_is_one_line(tmp_path: Path, read: Any, content: bytes) -> None:
    (tmp_path / "t").write_bytes(content)
    with pytest.raises(ArgumentError, match="cannot be read") as caught:
        read(tmp_path / "t")
    assert len(str(caught.value).splitlines()) == 1
