"""What a run tells whoever watches it: W&B, speed, time, threads."""

import json
import statistics
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from command_line import invoke, small_config

from distsam.runs.rows import read_rows


def test_wandb_is_told_where_it_belongs_and_gets_every_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[dict[str, Any]] = []
    told: dict[str, Any] = {}
    run = SimpleNamespace(id="k3x9", define_metric=lambda *_, **__: None, log=rows.append, finish=lambda: None)

    def init(**kwargs: Any) -> Any:
        told.update(kwargs)
        return run

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, Settings=lambda **kw: kw))
    keys = ["wandb.mode=offline", "wandb.project=p", "wandb.name=n", "wandb.group=g"]
    result = invoke("train", small_config(tmp_path), f"run.dir={tmp_path}/run", *keys)
    assert result.exit_code == 0, result.output
    assert {key: told[key] for key in ("mode", "project", "name", "group")} == {
        "mode": "offline",
        "project": "p",
        "name": "n",
        "group": "g",
    }
    assert told["config"]["optim"]["method"] == "sam+das"
    written = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert rows == [{key: value for key, value in row.items() if value is not None} for row in written]


def test_speed_and_time_are_those_of_the_clock(tmp_path: Path) -> None:
    keys = ["train.steps=60", "train.log_every=10"]
    result = invoke("train", small_config(tmp_path), f"run.dir={tmp_path}/run", *keys)
    assert result.exit_code == 0, result.output
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")[1:]
    ratios = [
        row["time/steps_per_s"]
        * (row["time/elapsed_s"] - before["time/elapsed_s"])
        / (row["train/step"] - before["train/step"])
        for before, row in pairwise(rows)
    ]
    # Two readings of one clock, microseconds apart, over steps of milliseconds.
    assert statistics.median(ratios) == pytest.approx(1, rel=0.1)
    before_resume = rows[-1]["time/elapsed_s"]
    result = invoke(
        "train", small_config(tmp_path), f"run.dir={tmp_path}/run", "train.steps=61", "train.resume=auto", *keys[1:]
    )
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["wall_s"] > before_resume


def test_the_number_of_threads_is_the_one_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    for value in ("3", "null"):
        result = invoke("train", small_config(tmp_path), f"run.dir={tmp_path}/{value}", f"train.num_threads={value}")
        assert result.exit_code == 0, result.output
    assert asked == [3]
