from pathlib import Path
from typing import BinaryIO

import pytest

from distsam.runs.atomic import remove_parts, write_atomically


def test_a_text_replaces_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "summary.json"
    for text in ("old", "new ü"):
        write_atomically(target, text)
        assert target.read_text(encoding="utf-8") == text
    assert list(tmp_path.iterdir()) == [target]


def test_bytes_come_from_a_function(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", lambda stream: stream.write(b"\xff"))
    assert (tmp_path / "a").read_bytes() == b"\xff"


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "summary.json"
    write_atomically(target, "old")

    def fail(stream: BinaryIO) -> None:
        stream.write(b"half")
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        write_atomically(target, fail)
    with pytest.raises(UnicodeEncodeError):
        write_atomically(target, "\ud800")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_link_in_the_place_of_the_unfinished_file_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever could write into the folder chose which file of ours was overwritten; now the name cannot be guessed."""
    precious = tmp_path / "precious"
    precious.write_text("precious")
    monkeypatch.setattr("distsam.runs.atomic.secrets.token_hex", lambda _: "0" * 16)
    (tmp_path / f".{'0' * 16}.tmp").symlink_to(precious)
    with pytest.raises(FileExistsError):
        write_atomically(tmp_path / "out", "new")
    monkeypatch.undo()
    write_atomically(tmp_path / "out", "new")
    assert precious.read_text() == "precious"
    assert not (tmp_path / "out").is_symlink()


def test_what_killed_writers_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / f".{'0a' * 8}.tmp").touch()
    (tmp_path / ".mine.tmp").touch()
    (tmp_path / f".{'0b' * 8}.tmp").mkdir()
    remove_parts(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f".{'0b' * 8}.tmp", ".mine.tmp"]
