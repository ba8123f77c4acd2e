"""Tables: labels become positions and come back, values exactly; what cannot be used is said with its row."""

import datetime
from pathlib import Path

import numpy as np
import pytest

from distsam.errors import ArgumentError
from distsam.tasks.entries import Entries

pa = pytest.importorskip("pyarrow")
from pyarrow import feather, parquet  # noqa: E402

from distsam.tasks.tables import read_labels, read_table, write_table  # noqa: E402

CITIES, DAYS = ("007", "Köln", "Wien, AT"), ("2024-01-01", "2024-02-01")


def as_text(folder: Path, text: str, name: str = "t.csv") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def value_at(entries: Entries, *labels: object) -> float:
    wanted = [mode.position_of(label) for mode, label in zip(entries.modes, labels, strict=True)]
    [row] = np.flatnonzero((entries.indices == wanted).all(axis=1))
    return float(entries.values[row])


def test_labels_keep_their_text_and_stand_in_order(tmp_path: Path) -> None:
    file = as_text(tmp_path, 'day,city,price\n2024-02-01,007,0.1\n2024-01-01,"Wien, AT",-1e-3\n2024-01-01,Köln,7\n')
    entries = read_table(file)
    assert [mode.name for mode in entries.modes] == ["day", "city"]
    assert [mode.labels for mode in entries.modes] == [DAYS, CITIES]
    assert (entries.shape, entries.value_name) == ((2, 3), "price")
    assert value_at(entries, "2024-01-01", "Wien, AT") == -1e-3
    assert value_at(entries, "2024-02-01", "007") == 0.1


def test_na_is_a_label_as_any_other_and_no_value(tmp_path: Path) -> None:
    entries = read_table(
        as_text(tmp_path, "country,year,value\nNA,null,1.5\nDE,2024,NA\nDE,null,x\n".replace("x", "2"))
    )
    assert [mode.labels for mode in entries.modes] == [("DE", "NA"), ("2024", "null")]
    assert (value_at(entries, "NA", "null"), len(entries)) == (1.5, 2)


def test_whole_numbers_stand_in_the_order_of_numbers(tmp_path: Path) -> None:
    rows = "".join(f"{i},{j},0.5\n" for i in (10, 9, -1) for j in ("b10", "b9"))
    entries = read_table(as_text(tmp_path, f"i,j,v\n{rows}"))
    assert entries.modes[0].labels == ("-1", "9", "10")
    assert entries.modes[1].labels == ("b10", "b9")


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_columns_are_chosen_by_name_and_others_are_passed_over(tmp_path: Path, delimiter: str) -> None:
    text = "a,b,x,y\nu,v,1.5,2.5\nu,w,1.0,2.0\nz,v,3,4\n".replace(",", delimiter)
    entries = read_table(as_text(tmp_path, text), value="y", modes=["b", "a"])
    assert [mode.name for mode in entries.modes] == ["b", "a"]
    assert value_at(entries, "v", "z") == 4.0


def test_types_of_parquet_and_feather_are_kept(tmp_path: Path) -> None:
    days = [datetime.date(2024, 1, 2), datetime.date(2024, 1, 1)]
    table = pa.table(
        {"day": days, "n": pa.array([10, 9]), "kind": pa.array(["b", "a"]).dictionary_encode(), "v": [1, 2]}
    )
    parquet.write_table(table, tmp_path / "t.parquet")
    feather.write_feather(table, tmp_path / "t.feather")
    for name in ("t.parquet", "t.feather"):
        entries = read_table(tmp_path / name, value="v")
        assert [mode.labels for mode in entries.modes] == [tuple(sorted(days)), (9, 10), ("a", "b")]
        assert value_at(entries, days[0], 10, "b") == 1.0
        # Text in a table of questions stands for the date that is written so.
        assert value_at(entries, "2024-01-01", "9", "a") == 2.0


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".feather"])
def test_a_round_trip_is_exact(tmp_path: Path, suffix: str) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=6) * 10.0 ** rng.integers(-9, 9, size=6)
    rows = [
        f'"{c}",{d},{v!r}\n' for (c, d), v in zip([(c, d) for c in CITIES for d in DAYS], values.tolist(), strict=True)
    ]
    entries = read_table(as_text(tmp_path, "city,day,price\n" + "".join(rows)))
    with (tmp_path / f"out{suffix}").open("wb") as stream:
        write_table(stream, suffix, entries.modes, entries.indices, {entries.value_name: entries.values})
    again = read_table(tmp_path / f"out{suffix}")
    assert again.modes == entries.modes
    assert np.array_equal(again.indices, entries.indices)
    assert np.array_equal(again.values, entries.values)
    assert again.sha256() == entries.sha256()


def test_other_labels_are_other_data(tmp_path: Path) -> None:
    first = read_table(as_text(tmp_path, "a,b,v\nu,x,1.5\nw,x,2.5\n"))
    second = read_table(as_text(tmp_path, "a,b,v\nu,x,1.5\nz,x,2.5\n"))
    assert first.sha256() != second.sha256()


def test_rows_without_a_value_are_entries_to_predict(tmp_path: Path) -> None:
    entries = read_table(as_text(tmp_path, "a,b,v\nu,x,1.5\nw,x,\nu,y,NaN\nw,y,2.5\n"))
    assert (len(entries), entries.shape) == (2, (2, 2))
    assert entries.notes == ("2 rows have no 'v' (rows 2, 3): they are entries to predict",)


def test_asked_entries_may_have_other_columns_and_another_order(tmp_path: Path) -> None:
    entries = read_table(as_text(tmp_path, "a,b,v\nu,x,1.5\nw,y,2.5\n"))
    asked = as_text(tmp_path, "note,b,a\nhi,y,w\nho,x,w\n", "ask.csv")
    assert read_labels(asked, entries.modes).tolist() == [[1, 1], [1, 0]]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a,b,x\nu,v,1.5\nw,v,1\nu,v,2.5\n", "rows 1 and 3 are both the entry (u, v); keep one value for each"),
        ("a,b,x\nu,v,1.5\nw,v,1\nu,v,2\nw,v,2\n", "(u, v), and 1 more rows repeat an entry"),
        ("a,b,x\nu,v,1.5\n,v,2.5\nw,,2.5\n,w,2\n", "column 'a' has no label in rows 2, 4"),
        ("a,b,value\nu,v,1.5\nz,v,1,5\n", "Expected 3 columns, got 4: z,v,1,5)"),
        ("a;b;value\nu;v;1,5\nw;v;2.5\n", "column 'value' holds '1,5' in row 1, which is no number; write decimals"),
        ("a,b,value\nu,v,inf\nu,w,1.0\n", "column 'value' is infinite in row 1"),
        ("a,value\nu,1.5\n", "has 1 columns of labels beside 'value'"),
        ("a,a,value\nu,v,1.5\n", "has two columns 'a'"),
        ("a,b,value\n", "has no rows"),
        ("", "cannot be read (Empty CSV file)"),
    ],
)
def test_what_cannot_be_used_is_said_with_its_row(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        read_table(as_text(tmp_path, text))
    assert caught.value.argument == "path"
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("value", "modes", "argument", "says"),
    [
        ("price", None, "value", "'price' is no column of"),
        (None, ["a", "q"], "modes", "'q' is no column of"),
        ("x", ["a", "x"], "modes", "name each column of labels once"),
        (None, None, "value", "has 2 columns that could be the values: 'x', 'y'; name the one of the values"),
        (None, ["a", "x", "y"], "value", "has no column of real numbers among 'b'"),
        ("x", ["a", "y"], "modes", "holds real numbers, which are no labels, and 'x' the values"),
    ],
)
def test_columns_that_are_not_there_are_said(
    tmp_path: Path, value: str | None, modes: list[str] | None, argument: str, says: str
) -> None:
    with pytest.raises(ArgumentError) as caught:
        read_table(as_text(tmp_path, "a,b,x,y\nu,v,1.5,2.5\nu,w,1.0,2.0\n"), value, modes)
    assert caught.value.argument == argument
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [("a,b\nw,zz\n", "'zz' is no label of 'b' in the data of the run"), ("a\nw\n", "has no column 'b'; it has 'a'")],
)
def test_labels_that_the_data_do_not_have_are_said(tmp_path: Path, text: str, says: str) -> None:
    entries = read_table(as_text(tmp_path, "a,b,v\nu,xx,1.5\nw,yy,2.5\n"))
    with pytest.raises(ArgumentError, match="entries") as caught:
        read_labels(as_text(tmp_path, text, "ask.csv"), entries.modes, "entries")
    assert says in str(caught.value)


def test_a_near_label_is_suggested(tmp_path: Path) -> None:
    entries = read_table(as_text(tmp_path, "a,b,v\nParis,x,1.5\nWien,y,2.5\n"))
    with pytest.raises(ArgumentError, match="did you mean 'Paris'"):
        read_labels(as_text(tmp_path, "a,b\nPariss,x\n", "ask.csv"), entries.modes)
