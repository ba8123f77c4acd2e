import atexit
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from distsam.train.trackers.wandb import WandbTracker


class FakeRun:
    id = "k3x9"

    def __init__(self, fails: bool = False) -> None:
        self.rows: list[dict[str, Any]] = []
        self.metrics: list[tuple[str, str | None]] = []
        self.alerts: list[tuple[str, str]] = []
        self.fails = fails
        self.is_finished = False

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.metrics.append((name, step_metric))

    def log(self, row: dict[str, Any]) -> None:
        if self.fails:
            raise ConnectionError("no\nnetwork")
        self.rows.append(row)

    def alert(self, title: str, text: str) -> None:
        self.alerts.append((title, text))

    def finish(self) -> None:
        self.is_finished = True


def install(monkeypatch: pytest.MonkeyPatch, init: Any) -> None:
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, Settings=lambda **kw: kw))


def test_wandb_gets_the_same_keys_on_its_own_step_axis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = FakeRun()
    install(monkeypatch, lambda **kwargs: run)
    tracker = WandbTracker("offline", tmp_path, project="p")
    tracker.log({"train/step": 3, "train/loss": 0.5, "heldout/r2": None})
    tracker.alert("the disk is nearly full")
    tracker.close()
    assert run.metrics == [("train/step", None), ("*", "train/step")]
    assert run.rows == [{"train/step": 3, "train/loss": 0.5}]
    assert run.alerts == [("distsam: the disk is nearly full", "the disk is nearly full")]
    assert run.is_finished


def test_a_run_that_goes_on_is_one_run_at_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was resumed was two runs there, each with half the rows."""
    asked: list[tuple[Any, Any]] = []

    def init(**kwargs: Any) -> FakeRun:
        asked.append((kwargs.get("id"), kwargs.get("resume")))
        return FakeRun()

    install(monkeypatch, init)
    for _ in range(2):
        WandbTracker("online", tmp_path).close()
    assert asked == [(None, None), ("k3x9", "allow")]


def test_wandb_is_not_imported_when_disabled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # an import would raise
    tracker = WandbTracker("disabled", tmp_path)
    tracker.log({"train/step": 1})
    tracker.close()


def test_wandb_that_cannot_start_warns_once_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    tracker = WandbTracker("online", tmp_path)
    tracker.log({"train/step": 1})
    tracker.close()
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("distsam: W&B failed, the run goes on without it: ")


def test_wandb_that_fails_on_the_way_warns_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, lambda **kwargs: FakeRun(fails=True))
    monkeypatch.setattr(atexit, "register", lambda hook: None)
    tracker = WandbTracker("online", tmp_path)
    for step in range(3):
        tracker.log({"train/step": step})
    tracker.close()
    assert capsys.readouterr().err == "distsam: W&B failed, the run goes on without it: no network\n"


def test_wandb_that_failed_on_the_way_leaves_quietly_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its process was killed: wandb's own hook then printed a traceback of forty lines at exit."""
    hooks: list[Any] = []
    monkeypatch.setattr(atexit, "register", hooks.append)
    install(monkeypatch, lambda **kwargs: FakeRun(fails=True))
    ended: list[str] = []

    def teardown() -> None:
        ended.append("asked")
        raise ConnectionResetError("the process is gone")

    monkeypatch.setattr(sys.modules["wandb"], "teardown", teardown, raising=False)
    WandbTracker("online", tmp_path).log({"train/step": 1})
    for hook in hooks:
        hook()
    assert ended == ["asked"]
    assert len(capsys.readouterr().err.splitlines()) == 1
