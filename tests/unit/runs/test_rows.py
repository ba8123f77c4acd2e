import json
from pathlib import Path

import pytest

from distsam.errors import InputError
from distsam.runs.rows import MetricsFile, read_rows


def test_every_row_is_readable_as_soon_as_it_is_logged(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl", 0)
    file.log({"train/step": 1, "train/loss": float("nan"), "heldout/r2": float("-inf"), "x": None, "y": 0.5})
    [line] = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line) == {"train/step": 1, "train/loss": None, "heldout/r2": None, "x": None, "y": 0.5}
    file.close()


def test_resume_drops_rows_of_the_undone_steps_and_a_line_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"train/step": s}) + "\n" for s in (0, 1, 5, 10)) + '{"train/st')
    file = MetricsFile(path, 5)
    file.log({"train/step": 6})
    file.close()
    assert [row["train/step"] for row in read_rows(path)] == [0, 1, 5, 6]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_start_from_the_beginning_drops_all_rows(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"train/step": 0}\n')
    MetricsFile(path, 0).close()
    assert path.read_text() == ""


@pytest.mark.parametrize("line", [b"\xff", b'{"train/step": null}', b'{"train/step": "7"}', b"[1]", b"[" * 9999, b"7"])
def test_a_line_that_is_no_row_is_left_out(tmp_path: Path, line: bytes) -> None:
    """One flipped bit in the file, and no resume of that run ever ended without a traceback."""
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"train/step": 0}\n' + line + b'\n{"train/step": 1}\n')
    MetricsFile(path, 5).close()
    assert [row["train/step"] for row in read_rows(path)] == [0, 1]


def test_a_folder_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"metrics.jsonl: no such file"):
        read_rows(tmp_path / "metrics.jsonl")
