import json
from pathlib import Path
from typing import Any

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


def test_a_last_row_without_the_end_of_its_line_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"train/step": 0}\n{"train/step": 5}')
    MetricsFile(path, 5).close()
    assert [row["train/step"] for row in read_rows(path)] == [0, 5]


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
    file = MetricsFile(path, 5)
    file.close()
    assert [row["train/step"] for row in read_rows(path)] == [0, 1]
    assert file.num_set_aside == 1
    assert file.aside.read_bytes() == line + b"\n"


def test_a_folder_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"metrics.jsonl: no such file"):
        read_rows(tmp_path / "metrics.jsonl")


class FullDisk:
    """A stream that takes `room` bytes."""

    def __init__(self, stream: Any, room: int) -> None:
        self.stream, self.room = stream, room
        self.fileno, self.close = stream.fileno, stream.close

    def write(self, content: bytes) -> int:
        if not self.room:
            raise OSError(28, "No space left on device")
        taken = content[: self.room]
        self.room -= len(taken)
        return int(self.stream.write(taken))


def test_rows_wait_while_the_disk_is_full_and_are_written_in_order(tmp_path: Path) -> None:
    """A full disk ended the run in a traceback, and nothing was saved."""
    file = MetricsFile(tmp_path / "metrics.jsonl", 0)
    stream = file._stream
    file._stream = FullDisk(stream, 30)  # type: ignore[assignment]
    for step in range(3):
        file.log({"train/step": step})
    assert file.problem is not None
    assert "No space left on device" in file.problem
    assert len(read_rows(file.path)) == 1
    file._stream = stream
    file.log({"train/step": 3})
    assert file.problem is None
    file.close()
    assert [row["train/step"] for row in read_rows(file.path)] == [0, 1, 2, 3]


def test_a_deleted_file_is_a_problem_at_the_next_row(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl", 0)
    file.path.unlink()
    file.log({"train/step": 1})
    assert file.problem is not None
    assert file.problem.endswith("(the file was deleted)")
    file.close()
