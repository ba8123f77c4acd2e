"""How a run stands, from the files of its folder alone."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from distsam.errors import InputError
from distsam.report.live_table import drawn
from distsam.report.status import RunStatus, RunWatch
from distsam.report.status_text import change_text, duration, sparkline, status_line
from distsam.runs.about import About
from distsam.runs.folder import RunFolder
from distsam.runs.lock import RunLock
from distsam.runs.summary import SavedGoal, Summary

GOAL = SavedGoal("validation/r2", True, ("r2", "rmse"))


def write(folder: Path, *rows: dict[str, object]) -> RunFolder:
    """A run folder with these rows behind those that it has."""
    run = RunFolder(folder)
    folder.mkdir(exist_ok=True)
    run.config.write_text("train: {steps: 100}\n")
    About(100, 0, GOAL).write(run.about)
    with run.metrics.open("a") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)
    return run


def row(step: int, deviation: float | None = 1.0, **more: object) -> dict[str, object]:
    return {"train/step": step, "train/loss": 0.25, "balance/net/norm_deviation": deviation, **more}


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[RunFolder]:
    """A folder in which a run, this process, is at work."""
    run = write(tmp_path / "run")
    lock = RunLock(run.lock)
    yield run
    lock.release()


def text_of(*statuses: RunStatus, width: int = 80) -> str:
    stream = StringIO()
    Console(file=stream, width=width, highlight=False).print(drawn(statuses))
    return stream.getvalue()


def test_a_run_under_way_is_told_with_its_numbers(locked: RunFolder) -> None:
    scores = {"heldout/r2": 0.5, "validation/r2": 0.75, "validation/rmse": 2.0, "time/steps_per_s": 0.5}
    norms = {"balance/net/core_norm_sq/left": 3.0, "balance/net/core_norm_sq/right": 1.0}
    write(locked.path, row(0, 4.0), row(40, 5.0, **scores, **norms))
    status = RunWatch(locked.path).look()
    assert (status.state, status.step, status.steps, status.steps_per_s, status.loss) == (
        "training",
        40,
        100,
        0.5,
        0.25,
    )
    assert f"process {os.getpid()} on " in status.detail
    assert status.scores == (("validation r2", 0.75), ("heldout r2", 0.5))
    # 60 steps at one in two seconds, less what has gone by since the row.
    assert status.left_s == pytest.approx(120, abs=5)
    assert status.balance is not None
    assert (status.balance.deviation, status.balance.change, status.balance.history) == (5.0, 0.25, (4.0, 5.0))
    assert (status.balance.core, status.balance.share) == ("left", 0.75)
    assert (status.alerts, status.checkpoint) == (None, None)


def test_a_row_that_comes_later_keeps_what_it_does_not_have(locked: RunFolder) -> None:
    """Scores come at their own cadence; a number that is null is not finite any more."""
    watch = RunWatch(locked.path)
    assert watch.look().state == "starting"
    write(locked.path, row(5, **{"validation/r2": 0.5, "balance/net/alerts": 0}))
    watch.look()
    write(locked.path, row(10, None, **{"balance/net/alerts": 2}), row(15, None, **{"balance/net/alerts": 1}))
    status = watch.look()
    assert status.scores == (("validation r2", 0.5),)
    assert status.balance is not None
    assert status.balance.deviation is None
    assert (status.alerts, status.alert_step) == (1, 10)
    assert watch.num_bytes == locked.metrics.stat().st_size


def test_of_several_networks_the_most_unbalanced_is_shown(locked: RunFolder) -> None:
    more = {"balance/b.1/norm_deviation": 7.0, "balance/b.1/core_norm_sq/x": 1.0}
    write(locked.path, row(1, **more))
    status = RunWatch(locked.path).look()
    assert status.balance is not None
    assert (status.balance.network, status.balance.core, status.num_networks) == ("b.1", "x", 2)
    assert "norm deviation 7 in b.1, the largest of 2" in status_line(status)


def test_a_run_is_over_when_it_has_a_summary_of_its_last_row(tmp_path: Path) -> None:
    run = write(tmp_path / "run", row(100))
    Summary(steps=100, stopped_by="last step").write(run.summary)
    status = RunWatch(run.path).look()
    assert (status.state, status.detail) == ("over", "ended by last step")
    # It went on, and failed: the summary is that of the part before.
    write(run.path, row(120))
    assert RunWatch(run.path).look().state == "dead"


def test_a_killed_run_is_one_whose_process_is_gone(tmp_path: Path) -> None:
    run = write(tmp_path / "run", row(3))
    code = f"import os, pathlib; from distsam.runs.lock import RunLock; RunLock(pathlib.Path({str(run.lock)!r})); "
    killed = subprocess.Popen([sys.executable, "-c", code + "os.kill(os.getpid(), 9)"], cwd=Path(__file__).parents[3])
    # Not asked after yet, it is still in the table of processes.
    os.waitid(os.P_PID, killed.pid, os.WEXITED | os.WNOWAIT)
    try:
        status = RunWatch(run.path).look()
    finally:
        killed.wait(timeout=60)
    assert status.state == "dead"
    assert f"no process holds the lock: process {killed.pid} on " in status.detail
    assert "no process holds the lock" in " ".join(text_of(status).split())
    assert "run: dead (no process holds" in text_of(status, status)


def test_looking_never_takes_the_lock(locked: RunFolder) -> None:
    """A run that starts while another looks would be told that the folder is in use."""
    content, before = locked.lock.read_text(), locked.lock.stat()
    RunWatch(locked.path).look()
    assert locked.lock.read_text() == content
    assert locked.lock.stat().st_mtime_ns == before.st_mtime_ns


def test_a_holder_on_another_machine_lives_while_its_lock_is_touched(tmp_path: Path) -> None:
    run = write(tmp_path / "run", row(3))
    run.lock.write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": "today"}))
    assert RunWatch(run.path).look().state == "training"
    os.utime(run.lock, (0, 0))
    assert RunWatch(run.path).look().state == "dead"


def test_a_folder_that_is_removed_is_gone(tmp_path: Path) -> None:
    run = write(tmp_path / "run", row(3))
    watch = RunWatch(run.path)
    run.config.unlink()
    assert watch.look().state == "gone"


@pytest.mark.parametrize(
    ("name", "says"), [("none", "no such folder"), (".", "is no run folder"), ("x" * 999, "no such")]
)
def test_what_is_no_run_is_refused(tmp_path: Path, name: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        RunWatch(tmp_path / name)


def test_damaged_rows_and_odd_names_break_nothing(locked: RunFolder) -> None:
    odd = {"balance/[red]\x1b[2J/norm_deviation": 10**400, "validation/r2": "x", "time/steps_per_s": 0}
    write(locked.path, {**row(1), "train/loss": True, **odd, "balance/net/core_norm_sq/a": -1.0})
    locked.about.write_text("{")
    locked.lock.write_text("\x00")
    status = RunWatch(locked.path).look()
    for text in (text_of(status), text_of(status, status), status_line(status)):
        assert "\x1b[2J" not in text


@pytest.mark.parametrize("count", [1, 2])
def test_the_view_fits_into_80_columns(locked: RunFolder, count: int) -> None:
    norms = {"balance/net/core_norm_sq/factor_10": 3.0, "validation/r2": -0.1234567, "time/steps_per_s": 1e-3}
    write(locked.path, row(12345, 1.2345678e-5), row(99, 2.5e-5, **norms))
    text = text_of(*[RunWatch(locked.path).look()] * count)
    assert max(map(len, text.splitlines())) <= 80
    for wanted in ("99/100", "-0.1235", "2.5e-05", "factor_10", "16 min 40 s"):
        assert wanted in text, text


def test_the_course_shows_where_it_is_high() -> None:
    assert sparkline([0, 1, 2, 3], 4) == "▁▃▆█"
    # Each decade the same way up.
    assert sparkline([1, 10, 100, 1000], 4) == "▁▃▆█"
    assert (sparkline([], 5), sparkline([2.0, 2.0], 5), len(sparkline(range(1, 99), 5))) == ("", "▁▁", 5)


def test_numbers_are_said_as_people_say_them() -> None:
    seconds = (0, 59.6, 185, 7800, 273600)
    assert [duration(s) for s in seconds] == ["0 s", "1 min 00 s", "3 min 05 s", "2 h 10 min", "3 d 4 h"]
    changes = (None, 0.001, 0.125, -0.5, 20.0)
    assert [change_text(c) for c in changes] == ["", "→ +0.1%", "↗ +12.5%", "↘ -50%", "↗ x21"]
