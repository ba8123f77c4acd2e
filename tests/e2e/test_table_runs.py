"""A table with labels from its CSV to predictions with labels, on two ranks, resumed and read elsewhere."""

import csv
import json
import math
from pathlib import Path

import pytest
from command_line import ROOT, alone, invoke, on_two_ranks, run

pytest.importorskip("pyarrow")
CITIES, DAYS, PRODUCTS = ("Paris", "Wien, AT", "Köln", "007"), [f"2024-01-{d:02d}" for d in range(1, 13)], range(1, 12)
KEYS = ["data.source=table", "network.bond_dim=3", "train.batch_size=null", "train.steps=40", "train.log_every=20"]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two thirds of the entries, one of them without a value."""
    file = tmp_path_factory.mktemp("table") / "prices.csv"
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["city", "day", "product", "price"])
        for i, city in enumerate(CITIES):
            for j, day in enumerate(DAYS):
                for k in PRODUCTS:
                    if (i + 2 * j + 5 * k) % 3:
                        writer.writerow(
                            [city, day, k, "" if (i, j, k) == (0, 0, 1) else math.sin(i + 1) * (j + 1) + k / 3]
                        )
    return file


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def key(row: dict[str, str]) -> tuple[str, str, str]:
    return row["city"], row["day"], row["product"]


def test_a_table_is_completed_with_its_labels(table: Path, tmp_path: Path) -> None:
    command = ("train", ROOT / "configs" / "file.yaml", f"data.path={table}", f"run.dir={tmp_path}/run", *KEYS)
    done = run(on_two_ranks(*command))
    assert done.returncode == 0, done.stderr
    assert "distsam: 1 rows have no 'price' (row 1): they are entries to predict" in done.stderr
    labels = json.loads((tmp_path / "run" / "labels.json").read_text())
    assert labels["value"] == "price"
    assert {mode["name"]: mode["labels"] for mode in labels["modes"]} == {
        "city": sorted(CITIES),
        "day": DAYS,
        "product": [str(k) for k in PRODUCTS],
    }
    done = run(alone("predict", tmp_path / "run", "-o", tmp_path / "filled.csv"))
    assert done.returncode == 0, done.stderr
    filled = rows_of(tmp_path / "filled.csv")
    assert len({key(row) for row in filled}) == len(CITIES) * len(DAYS) * len(PRODUCTS)
    given = {key(row): row["price"] for row in rows_of(table) if row["price"]}
    kept = {key(row): row["price"] for row in filled if row["known"] == "true"}
    assert kept.keys() == given.keys()
    assert all(float(kept[entry]) == float(given[entry]) for entry in given)

    (tmp_path / "asked.csv").write_text(
        "product;city;day\n3;Köln;2024-01-05\n11;Wien, AT;2024-01-12\n", encoding="utf-8"
    )
    asked = ("predict", tmp_path / "run", "-o", tmp_path / "some.csv", "--entries", tmp_path / "asked.csv")
    assert invoke(*asked).exit_code == 0
    some = rows_of(tmp_path / "some.csv")
    assert [key(row) for row in some] == [("Köln", "2024-01-05", "3"), ("Wien, AT", "2024-01-12", "11")]
    everywhere = {key(row): float(row["prediction"]) for row in filled}
    # One entry, or all of them, in float32.
    assert [float(row["price"]) for row in some] == pytest.approx([everywhere[key(row)] for row in some], rel=1e-4)


def test_a_label_that_the_data_do_not_have_is_one_line(table: Path, tmp_path: Path) -> None:
    command = ("train", ROOT / "configs" / "file.yaml", f"data.path={table}", f"run.dir={tmp_path}/run", *KEYS)
    assert invoke(*command, "train.steps=2").exit_code == 0
    (tmp_path / "asked.csv").write_text("product,city,day\n3,Pariss,2024-01-05\n")
    done = invoke("predict", tmp_path / "run", "-o", tmp_path / "some.csv", "--entries", tmp_path / "asked.csv")
    assert done.exit_code == 2
    [line] = done.stderr.splitlines()
    assert line.startswith("distsam: --entries: ")
    assert "'Pariss' is no label of 'city' in the data of the run; did you mean 'Paris'?" in line
    assert not (tmp_path / "some.csv").exists()


def test_a_table_whose_labels_changed_is_other_data(table: Path, tmp_path: Path) -> None:
    (tmp_path / "prices.csv").write_bytes(table.read_bytes())
    command = ("train", ROOT / "configs" / "file.yaml", f"data.path={tmp_path}/prices.csv", f"run.dir={tmp_path}/run")
    assert invoke(*command, *KEYS, "train.steps=2").exit_code == 0
    text = (tmp_path / "prices.csv").read_text(encoding="utf-8")
    (tmp_path / "prices.csv").write_text(text.replace("Paris", "Parma"), encoding="utf-8")
    done = invoke("evaluate", tmp_path / "run")
    assert done.exit_code == 2
    assert "prices.csv has changed since the run" in done.stderr
