"""`distsam wandb-workspace`: panels for the keys that a run really has, with and without an account."""

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import LIMIT_S, alone, environment, invoke, small_config

from distsam.report.wandb_workspace import ws
from distsam.runs.rows import STEP, read_rows


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workspace")
    keys = [f"run.dir={folder}/run", "wandb.project=pilot", "train.alert_share=0.5"]
    assert invoke("train", small_config(folder), *keys).exit_code == 0
    return folder / "run"


@pytest.fixture(autouse=True)
def nobody_is_logged_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)


def panels_in(value: Any) -> Iterator[dict[str, Any]]:
    """The config of every panel of a spec, wherever it stands."""
    if isinstance(value, dict):
        if "viewType" in value:
            yield value["config"]
        for inner in value.values():
            yield from panels_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from panels_in(inner)


def test_every_number_of_a_run_has_a_panel_and_no_panel_is_empty(tmp_path: Path, run_dir: Path) -> None:
    result = invoke("wandb-workspace", run_dir, "-o", tmp_path / "w.json", "--entity", "me", "--name", "first look")
    assert (result.exit_code, result.stderr) == (0, "")
    content = json.loads((tmp_path / "w.json").read_text())
    assert (content["entity"], content["project"], content["displayName"]) == ("me", "pilot", "first look")
    panels = list(panels_in(content["spec"]))
    assert result.stdout == f"{tmp_path}/w.json: {len(panels)} panels in 5 sections\n"
    assert all(panel["xAxis"] == STEP and panel["metrics"] for panel in panels)
    rows = read_rows(run_dir / "metrics.jsonl")
    logged = {key for row in rows for key, value in row.items() if value is not None}
    shown = [metric for panel in panels for metric in panel["metrics"]]
    assert set(shown) == logged - {STEP, "time/elapsed_s"}
    assert len(set(shown)) == len(shown)


def test_what_is_saved_is_what_is_written(tmp_path: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an account: what would be sent is caught where the library sends it."""
    sent: list[Any] = []

    def upsert(view: Any) -> dict[str, Any]:
        sent.append(view)
        return {"upsertView": {"view": {"name": "nw-abc-v", "id": "1"}}}

    monkeypatch.setattr(ws.internal, "upsert_view2", upsert)
    monkeypatch.setattr(
        ws.Workspace, "url", property(lambda workspace: f"https://w/{workspace.entity}/{workspace.project}")
    )
    result = invoke("wandb-workspace", run_dir, "--project", "p", "--entity", "me")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("https://w/me/p: ")
    invoke("wandb-workspace", run_dir, "--project", "p", "--entity", "me", "-o", tmp_path / "w.json")
    [view] = sent
    metrics = [panel["metrics"] for panel in panels_in(view.spec.model_dump(by_alias=True, exclude_none=True))]
    assert metrics == [panel["metrics"] for panel in panels_in(json.loads((tmp_path / "w.json").read_text()))]


def test_who_is_not_logged_in_is_told_in_one_line_and_not_asked(run_dir: Path) -> None:
    """In a terminal wandb asks for a key, and waits."""
    inside, outside = pty.openpty()
    command = alone("wandb-workspace", run_dir, "--entity", "me")
    asking = subprocess.Popen(command, env=environment(), stdin=outside, stdout=outside, stderr=outside)
    try:
        assert asking.wait(timeout=LIMIT_S) == 2
        [line] = os.read(inside, 2**16).decode().splitlines()
    finally:
        asking.kill()
        os.close(inside)
        os.close(outside)
    assert "wandb login" in line
    assert line.startswith("distsam: wandb-workspace: W&B did not take it (")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{run}"], "--entity: is missing"),
        (["{run}/none", "-o", "w.json"], "{run}/none: is no run folder"),
        (["{run}", "-o", "{run}/none/w.json"], "--output: {run}/none/w.json cannot be written"),
        (["{run}", "-o", "w.json", "--name", "\N{ROCKET}"], "--name: '\N{ROCKET}' is not taken by W&B"),
    ],
)
def test_what_cannot_be_is_one_line_and_2(
    tmp_path: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke("wandb-workspace", *(argument.format(run=run_dir) for argument in arguments))
    assert result.exit_code == 2
    [line] = result.stderr.splitlines()
    assert line.startswith("distsam: " + says.format(run=run_dir))


def test_without_the_package_the_extra_is_named(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "distsam.report.wandb_workspace", raising=False)
    for name in [name for name in sys.modules if name.startswith("wandb_workspaces.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    result = invoke("wandb-workspace", run_dir, "--entity", "me")
    assert result.exit_code == 2
    [line] = result.stderr.splitlines()
    assert line.endswith("pip install 'distsam[workspace]'")
