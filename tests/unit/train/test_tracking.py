import atexit
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from distsam.train.tracking import MetricsFile, WandbMirror, read_rows


def test_every_row_is_readable_as_soon_as_it_is_logged(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl", 0)
    file.log({"train/step": 1, "train/loss": float("nan"), "heldout/r2": float("-inf"), "x": None, "y": 0.5})
    [line] = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line) == {"train/step": 1, "train/loss": None, "heldout/r2": None, "x": None, "y": 0.5}
    file.close()


def test_resume_drops_rows_of_the_undone_steps_and_a_line_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"train/step": s}) + "\n" for s in (0, 1, 5, 10)) + '{"train/st')
    file = MetricsFile(path, 5)
    file.log({"train/step": 6})
    file.close()
    assert [row["train/step"] for row in read_rows(path)] == [0, 1, 5, 6]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_start_from_the_beginning_drops_all_rows(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"train/step": 0}\n')
    MetricsFile(path, 0).close()
    assert path.read_text() == ""


class FakeRun:
    def __init__(self, fails: bool = False) -> None:
        self.rows: list[dict[str, Any]] = []
        self.metrics: list[tuple[str, str | None]] = []
        self.fails = fails
        self.is_finished = False

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.metrics.append((name, step_metric))

    def log(self, row: dict[str, Any]) -> None:
        if self.fails:
            raise ConnectionError("no\nnetwork")
        self.rows.append(row)

    def finish(self) -> None:
        self.is_finished = True


def install(monkeypatch: pytest.MonkeyPatch, init: Any) -> None:
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, Settings=lambda **kw: kw))


def test_wandb_gets_the_same_keys_on_its_own_step_axis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = FakeRun()
    install(monkeypatch, lambda **kwargs: run)
    mirror = WandbMirror("offline", tmp_path, project="p")
    mirror.log({"train/step": 3, "train/loss": 0.5, "heldout/r2": None})
    mirror.close()
    assert run.metrics == [("train/step", None), ("*", "train/step")]
    assert run.rows == [{"train/step": 3, "train/loss": 0.5}]
    assert run.is_finished


def test_wandb_is_not_imported_when_disabled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # an import would raise
    mirror = WandbMirror("disabled", tmp_path)
    mirror.log({"train/step": 1})
    mirror.close()


def test_wandb_that_cannot_start_warns_once_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    mirror = WandbMirror("online", tmp_path)
    mirror.log({"train/step": 1})
    mirror.close()
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("distsam: W&B failed, the run goes on without it: ")


def test_wandb_that_fails_on_the_way_warns_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, lambda **kwargs: FakeRun(fails=True))
    monkeypatch.setattr(atexit, "register", lambda hook: None)
    mirror = WandbMirror("online", tmp_path)
    for step in range(3):
        mirror.log({"train/step": step})
    mirror.close()
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
    WandbMirror("online", tmp_path).log({"train/step": 1})
    for hook in hooks:
        hook()
    assert ended == ["asked"]
    assert len(capsys.readouterr().err.splitlines()) == 1
