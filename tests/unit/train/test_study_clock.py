import os
import time
from pathlib import Path

import pytest

from distsam.train.studies.clock import StudyClock


def session(folder: Path, start: float, end: float) -> None:
    """What a process that was at work from `start` to `end` leaves."""
    folder.mkdir(exist_ok=True)
    file = folder / f"{start:.6f}-1"
    file.touch()
    os.utime(file, (end, end))


def test_time_of_several_processes_counts_once_and_pauses_not_at_all(tmp_path: Path):
    folder = tmp_path / "clock"
    for start, end in ((100.0, 160.0), (110.0, 150.0), (150.0, 170.0), (1000.0, 1010.0)):
        session(folder, start, end)
    assert StudyClock(folder).spent_s == pytest.approx(80.0)


def test_own_time_runs_on_between_two_looks(tmp_path: Path):
    clock = StudyClock(tmp_path / "clock")
    assert clock.spent_s == 0.0
    clock.start()
    time.sleep(0.05)
    assert clock.spent_s >= 0.05
