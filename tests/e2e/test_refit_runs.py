"""A run with train.refit=true: killed in either fit it comes to what an undisturbed one comes to."""

import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from command_line import (
    LIMIT_S,
    alone,
    assert_same_weights,
    environment,
    invoke,
    on_two_ranks,
    run,
    small_config,
    timeless,
)

from distsam.runs.summary import Summary, read_summary

STEPS = 200
KEYS = ("train.refit=true", f"train.steps={STEPS}", "train.log_every=20", "train.checkpoint_every=20", "optim.lr=0.03")


def train(folder: Path, run_dir: Path, *more: str) -> tuple[str, ...]:
    return ("train", str(small_config(folder)), f"run.dir={run_dir}", *KEYS, *more)


def kill_once_there(command: list[str], path: Path) -> None:
    """Start, and SIGKILL all of its processes as soon as `path` exists."""
    process = subprocess.Popen(
        command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    until = time.monotonic() + LIMIT_S
    while not path.exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(LIMIT_S)
    assert path.exists()


def summary_of(run_dir: Path) -> Summary:
    summary = read_summary(run_dir / "summary.json")
    assert summary is not None
    return summary


@pytest.mark.soak
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_run_that_is_killed_in_both_fits_ends_in_the_same_bits(num_ranks: int, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    launch = alone if num_ranks == 1 else on_two_ranks
    undisturbed = run(launch(*train(tmp_path, whole)))
    assert undisturbed.returncode == 0, undisturbed.stderr
    resume = launch(*train(tmp_path, killed, "train.resume=auto"))
    best = summary_of(whole).best_step
    places = ["checkpoints/step-00000040", "refit/config.yaml", "refit/checkpoints/step-00000020", "refit/summary.json"]
    for place in places if num_ranks == 1 else places[2:3]:
        kill_once_there(resume, killed / place)
    done = run(resume)
    assert done.returncode == 0, done.stderr
    assert_same_weights(whole, killed)
    assert_same_weights(whole / "refit", killed / "refit")
    for fit in (".", "refit"):
        assert timeless(whole / fit) == timeless(killed / fit)
    assert summary_of(killed).numbers == summary_of(whole).numbers
    assert (summary_of(killed).weights, summary_of(killed).best_step) == ("refit", best)


def test_scores_predictions_and_weights_are_those_of_the_second_fit(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    result = invoke(*train(tmp_path, run_dir))
    assert result.exit_code == 0, result.output
    summary = summary_of(run_dir)
    assert "103 training, 12 validation" in result.output
    assert "115 training, 0 validation" in result.output
    assert f"fitted anew to all that is not held out, {summary.best_step} steps" in result.output
    evaluated = invoke("evaluate", run_dir, "--json")
    assert evaluated.exit_code == 0, evaluated.output
    assert f'"heldout/r2": {summary.numbers["heldout/r2"]}' in evaluated.stdout
    assert summary.numbers["heldout/r2"] != summary.numbers["before_refit/heldout/r2"]
    # The prediction is the second network's: the first one's differs.
    for folder, name in ((run_dir, "outer"), (run_dir / "refit", "refit")):
        assert invoke("predict", folder, "-o", tmp_path / f"{name}.npz").exit_code == 0
        assert invoke("export", folder, "-o", tmp_path / f"{name}.pt").exit_code == 0
    outer, refit = (np.load(tmp_path / f"{name}.npz")["prediction"] for name in ("outer", "refit"))
    assert np.array_equal(outer, refit)
    assert (tmp_path / "outer.pt").stat().st_size == (tmp_path / "refit.pt").stat().st_size
    (run_dir / "summary.json").unlink()
    assert invoke("predict", run_dir, "-o", tmp_path / "first.npz").exit_code == 0
    assert not np.array_equal(np.load(tmp_path / "first.npz")["prediction"], refit)


def test_a_run_that_goes_on_fits_anew(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert invoke(*train(tmp_path, run_dir, "train.steps=40")).exit_code == 0
    first = summary_of(run_dir)
    result = invoke(*train(tmp_path, run_dir, "train.resume=auto"))
    assert result.exit_code == 0, result.output
    second = summary_of(run_dir)
    assert (first.best_step, second.steps, second.weights) == (40, STEPS, "refit")
    assert second.best_step is not None
    assert second.best_step > 40
    assert timeless(run_dir / "refit")[-1]["train/step"] == second.best_step
