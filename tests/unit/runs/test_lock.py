"""One run at a time in a folder: a second process is refused, a dead one holds nobody back."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from distsam.errors import ArgumentError
from distsam.runs import lock as lock_module
from distsam.runs.folder import RunFolder
from distsam.runs.lock import RunLock

HOLD = "import sys, time; from distsam.runs.lock import RunLock; from pathlib import Path; RunLock(Path(sys.argv[1])); "


def held_by_another(path: Path) -> subprocess.Popen[str]:
    """A process that holds the lock until it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD + "print('held', flush=True); time.sleep(600)", str(path)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_refused_until_the_first_is_dead(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with held_by_another(path) as holder:
        with pytest.raises(ArgumentError, match=rf"is in use by process {holder.pid} on {socket.gethostname()} since"):
            RunLock(path)
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
    RunLock(path).release()


def test_a_released_lock_is_free_and_says_nobody(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    lock = RunLock(path)
    assert json.loads(path.read_text())["pid"] == os.getpid()
    lock.release()
    lock.release()
    assert path.read_text() == ""
    RunLock(path).release()


def test_a_holder_on_another_machine_is_named_until_it_is_silent(tmp_path: Path) -> None:
    """Where the file system does not share locks, the file says who is there."""
    path = tmp_path / "lock"
    path.write_text(json.dumps({"host": "node7", "pid": 41, "started": "2026-01-01T00:00:00+00:00"}))
    with pytest.raises(ArgumentError, match=r"in use by process 41 on node7 since 2026-01-01.*start again in 60 s"):
        RunLock(path)
    long_ago = path.stat().st_mtime - 2 * lock_module.SILENT_S
    os.utime(path, (long_ago, long_ago))
    RunLock(path).release()


def test_a_file_system_without_locks_knows_a_living_holder_by_its_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    path = tmp_path / "lock"
    with held_by_another(path) as holder:
        monkeypatch.setattr(lock_module.fcntl, "flock", no_locks)
        with pytest.raises(ArgumentError, match=f"process {holder.pid}"):
            RunLock(path)
        holder.kill()
        holder.wait()
    RunLock(path).release()


def test_the_holder_shows_that_it_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "_BEAT_S", 0.01)
    path = tmp_path / "lock"
    lock = RunLock(path)
    os.utime(path, (0, 0))
    for _ in range(1000):
        if path.stat().st_mtime > 0:
            break
        lock._ended.wait(0.01)
    lock.release()
    assert path.stat().st_mtime > 0


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lock").symlink_to(tmp_path / "precious")
    with pytest.raises(ArgumentError, match="lock is a link; remove it"):
        RunFolder(tmp_path / "run").claim("config")
    assert (tmp_path / "precious").read_text() == "kept"


def test_a_claim_that_fails_leaves_the_folder_free(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")

    def refuse() -> None:
        raise ArgumentError("path", "holds a run already")

    with pytest.raises(ArgumentError, match="holds a run"):
        folder.claim("config", refuse)
    folder.claim("config").release()
