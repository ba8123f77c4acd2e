"""The time that a study has taken, kills and pauses left out, and however many processes worked on it at once."""

import os
import threading
import time
from contextlib import suppress
from pathlib import Path

_BEAT_S = 1.0


class StudyClock:
    """Counts the time during which at least one process of the study was at work.

    Each process keeps a file: made when it began, touched every second. So a kill loses a second at most, and no two
    processes write the same file.

    Args:
        folder: of these files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._own: Path | None = None

    def start(self) -> None:
        """This process is at work from now on, until it ends; a second call does nothing."""
        if self._own is not None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        self._own = self._folder / f"{time.time():.6f}-{os.getpid()}"
        self._own.touch()
        # A run can take minutes, and a kill can come at any moment: its own thread, which sleeps.
        threading.Thread(target=self._beat, args=(self._own,), name="study clock", daemon=True).start()

    @staticmethod
    def _beat(own: Path) -> None:
        # Once the folder is gone there is nothing to count.
        with suppress(OSError):
            while own.exists():
                os.utime(own)
                time.sleep(_BEAT_S)

    @property
    def spent_s(self) -> float:
        """Seconds that the study has taken until now, or until the last process left it."""
        spans = []
        with suppress(OSError):
            for file in self._folder.iterdir():
                with suppress(OSError, ValueError):
                    end = time.time() if file == self._own else file.stat().st_mtime
                    spans.append((float(file.name.partition("-")[0]), end))
        return _union(spans)


def _union(spans: list[tuple[float, float]]) -> float:
    total = 0.0
    covered = float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, covered))
        covered = max(covered, end)
    return total
