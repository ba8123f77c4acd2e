import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distsam.runs.lock import _SILENT_S, RunLock, holder_of


def is_running(file: Path) -> bool:
    holder = holder_of(file)
    return holder is not None and holder.lives


def test_a_run_is_seen_while_it_holds_its_folder_and_is_not_disturbed(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    assert not is_running(file)
    lock = RunLock(file)
    assert is_running(file)
    assert lock.is_held()
    lock.release()
    assert not is_running(file)


def test_a_run_that_was_killed_is_not_running(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait(60)
    (tmp_path / "lock").write_text(json.dumps({"host": socket.gethostname(), "pid": child.pid}))
    assert not is_running(tmp_path / "lock")


@pytest.mark.parametrize(("silent_s", "expected"), [(0.0, True), (2 * _SILENT_S, False)])
def test_a_run_on_another_machine_lives_as_long_as_it_touches_its_lock(
    tmp_path: Path, silent_s: float, expected: bool
) -> None:
    file = tmp_path / "lock"
    file.write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    os.utime(file, (time.time() - silent_s,) * 2)
    assert is_running(file) is expected


@pytest.mark.parametrize("content", ["", "{", "[1]", "[" * 100_000])
def test_a_lock_that_says_nothing_is_nobodys(tmp_path: Path, content: str) -> None:
    (tmp_path / "lock").write_text(content)
    assert not is_running(tmp_path / "lock")
