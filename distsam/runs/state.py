"""Whether a run folder is being written to, found out without touching it."""

import json
import socket
import time
from pathlib import Path

from distsam.runs.lock import SILENT_S


def is_running(lock: Path) -> bool:
    """True while a living run holds the file `lock`; the lock is not taken, so the run never notices.

    The holder's process is looked for on this machine; one on another machine lives if it has touched the file lately.
    """
    try:
        holder = json.loads(lock.read_bytes())
        silent_s = time.time() - lock.stat().st_mtime
    except (OSError, ValueError, RecursionError):
        return False  # released (empty), or none
    if not isinstance(holder, dict) or silent_s >= SILENT_S:
        return False
    if holder.get("host") != socket.gethostname():
        return True
    pid = holder.get("pid")
    return isinstance(pid, int) and pid > 0 and Path(f"/proc/{pid}").exists()
