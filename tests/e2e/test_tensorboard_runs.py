"""Runs that write for TensorBoard, read back by its own reader."""

import sys
from pathlib import Path

import pytest
from command_line import invoke, small_config
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from distsam.runs.rows import STEP, read_rows


def test_a_run_and_its_resume_are_one_in_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_TOKEN", "s3cr3t-s3cr3t")
    run_dir = tmp_path / "run"
    keys = [f"run.dir={run_dir}", "tensorboard.dir=tb", "wandb.group=${oc.env:API_TOKEN}", "train.resume=auto"]
    for steps in (12, 20):
        result = invoke("train", small_config(tmp_path), *keys, f"train.steps={steps}")
        assert result.exit_code == 0, result.output
    found = EventAccumulator(str(run_dir / "tb"), size_guidance={"scalars": 0, "tensors": 0})
    found.Reload()
    rows = read_rows(run_dir / "metrics.jsonl")
    names = {key for row in rows for key, value in row.items() if value is not None} - {STEP}
    assert set(found.Tags()["scalars"]) == names
    for name in names:
        of_rows = [(row[STEP], row[name]) for row in rows if row.get(name) is not None]
        assert [(e.step, e.value) for e in found.Scalars(name)] == [
            (step, pytest.approx(value, rel=1e-6)) for step, value in of_rows
        ]
    for file in (run_dir / "tb").iterdir():
        assert b"s3cr3t" not in file.read_bytes()
    assert b"${oc.env:API_TOKEN}" in found.Tensors("config")[0].tensor_proto.string_val[0]


@pytest.mark.parametrize("is_missing", [True, False])
def test_what_cannot_be_is_one_line_and_2_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_missing: bool
) -> None:
    if is_missing:
        for name in [name for name in sys.modules if name.startswith("tensorboard.")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.delitem(sys.modules, "distsam.train.trackers.tensorboard")
        monkeypatch.setitem(sys.modules, "tensorboard", None)
    (tmp_path / "file").write_text("")
    result = invoke(
        "train", small_config(tmp_path), f"run.dir={tmp_path}/run", f"tensorboard.dir={tmp_path}/file/events"
    )
    assert result.exit_code == 2
    [line] = result.stderr.splitlines()
    assert line.startswith("distsam: tensorboard.dir: ")
    assert line.endswith("pip install 'distsam[tensorboard]'" if is_missing else "file is a file")
    assert not (tmp_path / "run").exists()
