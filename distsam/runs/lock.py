"""One run at a time writes into a run folder."""

import fcntl
import json
import os
import socket
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from distsam.errors import ArgumentError

# The holder touches the file to show that it lives; one on another machine that has not for so long is taken for dead.
_BEAT_S = 10.0
_SILENT_S = 60.0


class RunLock:
    """The lock of a run folder, held by one process until it is released or the process ends.

    The kernel frees it when its holder dies, however it dies. On a file system that does not share such locks between
    machines, a holder on another machine is known by what it wrote into the file, and by its touching it.

    Args:
        path: the lock file. It stays when the lock is released: were it removed, two processes could hold two files of
            that name.

    Raises:
        ArgumentError: of `path`: another process holds it; or it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stream: IO[str] | None = None
        self._ended = threading.Event()
        self._take()
        # A step can take minutes: its own thread, which sleeps.
        threading.Thread(target=self._beat, name="run lock", daemon=True).start()

    def _take(self) -> None:
        # O_NOFOLLOW: not through a link that somebody planted.
        if self._path.is_symlink():
            raise ArgumentError("path", f"{self._path} is a link; remove it, or choose another folder")
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        stream = os.fdopen(descriptor, "r+", encoding="utf-8")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_free = True
        except BlockingIOError:
            who = _described(_read(stream))
            stream.close()
            problem = f"{self._path.parent} is in use by {who}; wait for it, or choose another folder"
            raise ArgumentError("path", problem) from None
        except OSError:
            is_free = False  # a file system without locks: what the holder wrote has to do
        holder, silent_s = _read(stream), _silence(stream)
        is_here = holder.get("host", socket.gethostname()) == socket.gethostname()
        if silent_s < _SILENT_S and not (is_here and (is_free or not _is_alive(holder.get("pid")))):
            stream.close()
            raise ArgumentError(
                "path",
                f"{self._path.parent} is in use by {_described(holder)}, which was there {silent_s:.0f} s ago; "
                f"wait for it, or, if it is dead, start again in {_SILENT_S:.0f} s",
            )
        started = datetime.now(UTC).isoformat(timespec="seconds")
        stream.seek(0)
        stream.truncate()
        stream.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "started": started}) + "\n")
        stream.flush()
        self._stream = stream

    def is_held(self) -> bool:
        """False once the file is no longer where it was: somebody has moved or deleted it, or the whole folder."""
        if self._stream is None:
            return False
        own = os.fstat(self._stream.fileno())
        try:
            there = os.stat(self._path, follow_symlinks=False)
        except OSError:
            return False
        return (there.st_dev, there.st_ino) == (own.st_dev, own.st_ino)

    def release(self) -> None:
        """Let others have the folder; a second call does nothing."""
        self._ended.set()
        stream, self._stream = self._stream, None
        if stream is not None:
            with stream:
                stream.seek(0)
                stream.truncate()

    def _beat(self) -> None:
        while not self._ended.wait(_BEAT_S):
            stream = self._stream
            if stream is None:
                return
            try:
                os.utime(stream.fileno())
            except (OSError, ValueError):  # closed meanwhile, or the disk has gone
                return


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock, or was the last to hold it.

    Attributes:
        described: process and machine, for people.
        lives: whether it holds the lock still.
    """

    described: str
    lives: bool


def holder_of(path: Path) -> Holder | None:
    """Who holds the lock file `path`, or died while holding it; None where it was released, or never taken.

    For those who only look: it is read and never locked, because a run that starts at that moment would be refused.
    """
    try:
        with path.open(encoding="utf-8") as stream:
            holder, silent_s = _read(stream), _silence(stream)
    except (OSError, ValueError):
        return None
    if not holder:
        return None
    is_here = holder.get("host") == socket.gethostname()
    # The beat as well: the number of a process that died may be another's by now.
    lives = silent_s < _SILENT_S and (not is_here or _is_alive(holder.get("pid")))
    return Holder(_described(holder), lives)


def _read(stream: IO[str]) -> dict[str, Any]:
    """What the last holder wrote; empty where it was released."""
    stream.seek(0)
    try:
        content = json.loads(stream.read(4096))
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _is_alive(pid: Any) -> bool:
    """Whether there is such a process here, other than one that is dead and that its parent has not asked after."""
    try:
        state = Path(f"/proc/{int(pid)}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, ValueError, TypeError, IndexError):
        return False
    return state not in ("Z", "X")


def _silence(stream: IO[str]) -> float:
    """Seconds since the file was touched, by the clock of this machine."""
    return max(0.0, time.time() - os.fstat(stream.fileno()).st_mtime)


def _described(holder: dict[str, Any]) -> str:
    if not holder:
        return "another run"
    return f"process {holder.get('pid')} on {holder.get('host')} since {holder.get('started')}"
