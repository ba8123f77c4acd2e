"""A new task, a new ascent and a new tracker, each one file and one call, in a run that is killed and resumed."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from distsam.runs.checkpoints import finished_checkpoints
from distsam.runs.rows import read_rows
from distsam.train.checkpoint_reader import load_tensors, tensor_shapes

NEWCOMERS = Path(__file__).parent / "newcomers"
LIMIT_S = 300
CONFIG = """
task: {kind: waves, bond_dim: 3}
optim: {method: friendly, radius: 0.05, base: sgd, momentum: 0.9, lr: 0.02, schedule: cosine}
ledger: {file: ledger.txt}
train: {steps: 400, log_every: 20, checkpoint_every: 20, accumulate: 2, num_threads: 1, resume: auto}
"""
# With the word "slowly" the run sleeps in every step, so that it can be killed between two checkpoints.
ENTRY = f"""
import sys, time
sys.path.insert(0, {str(NEWCOMERS)!r})
import friendly, ledger, waves
if sys.argv[1] == "slowly":
    del sys.argv[1]
    loss = waves.Waves.loss
    waves.Waves.loss = lambda *args: (time.sleep(0.002), loss(*args))[1]
from distsam.cli import main
main()
"""


def command(folder: Path, run_dir: Path, *before: str) -> list[str]:
    (folder / "entry.py").write_text(ENTRY)
    (folder / "new.yaml").write_text(CONFIG)
    return [sys.executable, str(folder / "entry.py"), *before, "train", str(folder / "new.yaml"), f"run.dir={run_dir}"]


def finish(folder: Path, run_dir: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command(folder, run_dir), capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr
    return done


def kill_after(folder: Path, run_dir: Path, step: int) -> None:
    """Start the run and SIGKILL it once it has published the checkpoint of `step`."""
    process = subprocess.Popen(command(folder, run_dir, "slowly"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    began = time.monotonic()
    try:
        while not any(p.name >= f"step-{step:08d}" for p in finished_checkpoints(run_dir / "checkpoints")):
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() - began < LIMIT_S
            time.sleep(0.01)
    finally:
        process.kill()
    assert process.wait(timeout=LIMIT_S) == -signal.SIGKILL


def tensors(run_dir: Path) -> dict[str, torch.Tensor]:
    path = finished_checkpoints(run_dir / "checkpoints")[-1]
    found = {name: torch.empty(size, dtype=dtype) for name, (size, dtype) in tensor_shapes(path).items()}
    load_tensors(path, found)
    return found


def timeless(run_dir: Path) -> list[dict[str, Any]]:
    rows = read_rows(run_dir / "metrics.jsonl")
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run that nobody touched, and one that was killed twice."""
    folder = tmp_path_factory.mktemp("newcomers")
    whole, parts = folder / "whole", folder / "parts"
    finish(folder, whole)
    for step in (60, 160):
        kill_after(folder, parts, step)
    finish(folder, parts)
    return whole, parts


@pytest.mark.parametrize("name", ["waves", "friendly", "ledger"])
def test_a_newcomer_is_at_most_60_lines_and_one_call(name: str) -> None:
    text = (NEWCOMERS / f"{name}.py").read_text()
    assert len(text.splitlines()) <= 60
    assert text.count(".add(") == 1


def test_a_killed_run_of_newcomers_ends_with_the_same_bits(runs: tuple[Path, Path]) -> None:
    whole, parts = (tensors(run_dir) for run_dir in runs)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())
    assert timeless(runs[0]) == timeless(runs[1])


def test_the_state_of_a_new_ascent_is_in_the_checkpoint(runs: tuple[Path, Path]) -> None:
    found = tensors(runs[0])
    means = [name for name in found if name.startswith("friendly.") and name.endswith(".mean")]
    assert len(means) == len([name for name in found if name.startswith("model.")]) == 4
    assert all(found[name].abs().max() > 0 for name in means)


def test_the_goal_of_a_new_task_chooses_the_weights_and_names_the_scores(runs: tuple[Path, Path]) -> None:
    summaries = [json.loads((run_dir / "summary.json").read_text()) for run_dir in runs]
    assert summaries[0]["goal"]["key"] == "validation/mse"
    scores = [row.get("validation/mse") for row in timeless(runs[0])[1:]]
    assert summaries[0]["validation/mse"] == min(score for score in scores if score is not None)
    same = ("validation/mse", "best_step", "networks", "balance/train_of_cores/norm_deviation")
    assert all(summaries[0][key] == summaries[1][key] for key in same)


def test_a_new_tracker_is_told_every_row(runs: tuple[Path, Path]) -> None:
    lines = (runs[0] / "ledger.txt").read_text().splitlines()
    rows = timeless(runs[0])
    deviation = "balance/train_of_cores/norm_deviation"
    assert lines == [f"{row['train/step']} [{row[deviation]}]" for row in rows]
    # Of the killed run it also has the rows that were taken back: a mirror forgets nothing.
    assert set(lines) <= set((runs[1] / "ledger.txt").read_text().splitlines())
