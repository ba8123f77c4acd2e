"""Following metrics.jsonl: each row once, whoever writes it and however."""

import json
from pathlib import Path

import pytest

from distsam.runs.about import About, read_about
from distsam.runs.rows import MetricsFile
from distsam.runs.summary import SavedGoal
from distsam.runs.tail import RowTail


def steps(rows: list[dict[str, object]]) -> list[object]:
    return [row["train/step"] for row in rows]


def test_each_row_is_read_once_and_the_bytes_before_it_never_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = RowTail(path)
    assert tail.read() == ([], False)
    record = MetricsFile(path, 0)
    for step in range(5):
        record.log({"train/step": step, "train/loss": 0.5})
        rows, is_new = tail.read()
        assert (steps(rows), is_new) == ([step], step == 0)
    record.close()
    assert tail.read() == ([], False)
    assert tail.num_bytes == path.stat().st_size


def test_a_line_that_is_being_written_comes_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = RowTail(path)
    line = json.dumps({"train/step": 1, "name": "Köln"}, ensure_ascii=False).encode() + b"\n"
    cut = line.index(b"\xc3") + 1  # in the middle of a letter
    path.write_bytes(line[:cut])
    assert tail.read()[0] == []
    with path.open("ab") as stream:
        stream.write(line[cut:] + b"no row\n\n" + line)
    assert steps(tail.read()[0]) == [1, 1]


def test_rows_of_a_run_that_goes_on_replace_those_before(tmp_path: Path) -> None:
    """A resume drops the rows after its checkpoint: a reader that only appended had them twice."""
    path = tmp_path / "metrics.jsonl"
    record = MetricsFile(path, 0)
    for step in range(4):
        record.log({"train/step": step})
    tail = RowTail(path)
    assert steps(tail.read()[0]) == [0, 1, 2, 3]
    record.close()
    record = MetricsFile(path, 2)
    record.log({"train/step": 3})
    record.close()
    rows, is_new = tail.read()
    assert (steps(rows), is_new) == ([0, 1, 2, 3], True)
    path.write_text('{"train/step": 0}\n')  # cut in place
    assert tail.read() == ([{"train/step": 0}], True)
    path.unlink()
    assert tail.read() == ([], True)


def test_of_a_long_file_the_first_row_and_the_last_ones_are_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"train/step": step, "x": "y" * 80}) + "\n" for step in range(1000)))
    tail = RowTail(path, first_bytes=1000)
    found = steps(tail.read()[0])
    assert found == [0, *range(1000 - len(found) + 1, 1000)]
    assert tail.num_bytes < 1200
    with path.open("a") as stream:
        stream.write('{"train/step": 1000}\n')
    assert tail.read() == ([{"train/step": 1000}], False)


def test_what_a_run_is_about_comes_back(tmp_path: Path) -> None:
    goal = SavedGoal("validation/r2", True, ("r2", "rmse"), (("held-out R2", "heldout/r2"),))
    for about in (About(600, 0, goal), About(20, 10, None)):
        about.write(tmp_path / "about.json")
        assert read_about(tmp_path / "about.json") == about


@pytest.mark.parametrize("text", ["", "[]", '{"steps": 3}', '{"steps": 3, "first_step": 0, "goal": {}}', "\xff"])
def test_what_says_nothing_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "about.json").write_text(text, encoding="latin-1")
    assert read_about(tmp_path / "about.json") is None
    assert read_about(tmp_path / "none.json") is None
