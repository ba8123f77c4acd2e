"""netCDF and MATLAB files from `distsam train` to predictions with their labels."""

import csv
from pathlib import Path

import numpy as np
import pytest
from command_line import ROOT, invoke
from scipy.io import savemat

xr = pytest.importorskip("xarray")
pytest.importorskip("h5netcdf")
pytest.importorskip("pyarrow")
KEYS = ["data.source=table", "network.bond_dim=2", "train.batch_size=null", "train.steps=20", "train.log_every=10"]
CITIES, DAYS = ["Wien", "Köln", "Paris", "Oslo"], [f"2024-01-{day:02d}" for day in range(1, 11)]


def values() -> np.ndarray:
    dense = np.add.outer(np.arange(1.0, 5.0), np.sin(np.arange(10.0)))[:, :, None] * np.arange(1.0, 4.0)
    dense[0, 0, 0] = np.nan
    return dense


def train_and_predict(file: Path, folder: Path, *keys: str) -> list[dict[str, str]]:
    config = ROOT / "configs" / "file.yaml"
    result = invoke("train", config, f"data.path={file}", f"run.dir={folder}/run", *KEYS, *keys)
    assert result.exit_code == 0, result.output
    result = invoke("predict", folder / "run", "-o", folder / "filled.csv")
    assert result.exit_code == 0, result.output
    with (folder / "filled.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_a_netcdf_file_is_completed_with_its_labels(tmp_path: Path) -> None:
    coords = {"city": CITIES, "day": np.array(DAYS, dtype="datetime64[ns]")}
    array = xr.DataArray(values(), coords, ("city", "day", "level"), name="rain")
    array.to_netcdf(tmp_path / "t.nc", engine="h5netcdf")
    rows = train_and_predict(tmp_path / "t.nc", tmp_path)
    assert list(rows[0]) == ["city", "day", "level", "rain", "prediction", "known"]
    known = {(r["city"], r["day"], r["level"]): float(r["rain"]) for r in rows if r["known"] == "true"}
    given = {
        (city, day, str(level)): values()[i, j, level]
        for i, city in enumerate(CITIES)
        for j, day in enumerate(DAYS)
        for level in range(3)
    }
    [missing] = given.keys() - known.keys()
    assert missing == ("Wien", "2024-01-01", "0")
    assert known == {entry: value for entry, value in given.items() if entry != missing}


def test_a_mat_file_is_completed_with_the_names_that_its_modes_are_given(tmp_path: Path) -> None:
    savemat(tmp_path / "t.mat", {"rain": values(), "snow": values()})
    keys = ["data.value=snow", "data.modes=[city,day,level]"]
    rows = train_and_predict(tmp_path / "t.mat", tmp_path, *keys)
    assert list(rows[0]) == ["city", "day", "level", "snow", "prediction", "known"]
    assert (len(rows), sum(row["known"] == "true" for row in rows)) == (120, 119)


def test_which_variable_is_asked_for_by_its_key(tmp_path: Path) -> None:
    savemat(tmp_path / "t.mat", {"rain": values(), "snow": values()})
    config = ROOT / "configs" / "file.yaml"
    result = invoke("train", config, f"data.path={tmp_path}/t.mat", f"run.dir={tmp_path}/run", *KEYS)
    assert result.exit_code == 2
    [line] = result.stderr.splitlines()
    assert line.startswith("distsam: data.value: ")
    assert line.endswith("has several arrays of numbers: ['rain', 'snow']; name the one of the values")
