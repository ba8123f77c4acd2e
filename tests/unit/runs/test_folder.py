from pathlib import Path

import pytest

from distsam.errors import ArgumentError
from distsam.runs.folder import RunFolder


def test_naming_paths_makes_nothing(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    assert not folder.holds_run()
    folder.check_usable()
    assert not folder.path.exists()


def test_a_claimed_folder_holds_a_run_and_keeps_its_config(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "a" / "run")
    folder.claim("first").release()
    folder.claim("second").release()
    assert folder.holds_run()
    assert folder.config.read_text() == "first"


def test_a_folder_below_a_file_is_no_place_for_a_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folder = RunFolder(tmp_path / "file" / "run")
    with pytest.raises(ArgumentError, match=r"cannot be a folder, because .*file is a file") as refused:
        folder.check_usable()
    assert refused.value.argument == "path"
    with pytest.raises(ArgumentError, match=r"cannot be written \(Not a directory\)"):
        folder.claim("config")
