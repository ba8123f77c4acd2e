"""Run folders among people: damaged, moved, deleted, used by two runs, readable by the right ones."""

import os
import re
import shutil
import stat
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from command_line import LIMIT_S, alone, environment, from_file, invoke, on_two_ranks, run, small_config, timeless

from distsam.runs.checkpoints import finished_checkpoints


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x40
    file.write_bytes(content)


def test_a_flipped_bit_is_named_and_the_checkpoint_before_is_used(tmp_path: Path) -> None:
    config, run_dir = small_config(tmp_path), tmp_path / "run"
    assert invoke("train", config, f"run.dir={run_dir}").exit_code == 0
    flip_a_bit(run_dir / "checkpoints" / "step-00000020" / "__0_0.distcp")
    says = "step-00000020: is damaged and not used: __0_0.distcp is not what was written (its checksum differs)"
    for command in (["evaluate", run_dir], ["predict", run_dir, "-o", tmp_path / "out.npz"]):
        result = invoke(*command)
        assert result.exit_code == 0, result.output
        assert says in result.stderr
    result = invoke("train", config, f"run.dir={run_dir}", "train.resume=auto", "train.steps=30")
    assert result.exit_code == 0, result.output
    assert says in result.stderr
    assert "resumed after step 15" in result.stdout
    whole = tmp_path / "whole"
    assert invoke("train", config, f"run.dir={whole}", "train.steps=30").exit_code == 0
    assert timeless(run_dir) == timeless(whole)


def test_damaged_rows_are_set_aside_with_a_line(tmp_path: Path) -> None:
    config, run_dir = small_config(tmp_path), tmp_path / "run"
    assert invoke("train", config, f"run.dir={run_dir}", "train.steps=10").exit_code == 0
    with (run_dir / "metrics.jsonl").open("ab") as stream:
        stream.write(b'\xff\n{"train/step": null}\n')
    result = invoke("train", config, f"run.dir={run_dir}", "train.resume=auto")
    assert result.exit_code == 0, result.output
    assert f"{run_dir}/metrics.jsonl: 2 lines are damaged and kept in {run_dir}/metrics.jsonl.damaged" in result.stderr
    assert (run_dir / "metrics.jsonl.damaged").read_bytes() == b'\xff\n{"train/step": null}\n'
    assert [row["train/step"] for row in timeless(run_dir)] == [0, 1, 5, 10, 15, 20]


def test_a_run_that_was_moved_with_its_data_goes_on(tmp_path: Path) -> None:
    """A job that was requeued with another scratch path could be neither resumed nor evaluated."""
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    np.save(before / "data.npy", np.random.default_rng(0).normal(size=(8, 6, 4)))
    config = small_config(tmp_path)
    common = [config, "train.steps=10"]
    done = invoke("train", *common, f"run.dir={before}/run", *from_file(before / "data.npy"))
    assert done.exit_code == 0, done.output
    before.rename(after)
    scores = invoke("evaluate", after / "run", "--json")
    assert scores.exit_code == 0, scores.output
    (after / "data.npy").rename(tmp_path / "elsewhere.npy")
    assert invoke("evaluate", after / "run").exit_code == 2
    again = invoke("evaluate", after / "run", f"data.path={tmp_path}/elsewhere.npy", "--json")
    assert again.stdout == scores.stdout
    result = invoke("evaluate", after / "run", "optim.lr=1")
    assert result.exit_code == 2
    assert "optim.lr=1: cannot be changed now; only data.path, data.tokenizer, model.path can" in result.stderr
    moved = [f"run.dir={after}/run", *from_file(tmp_path / "elsewhere.npy"), "train.resume=auto"]
    result = invoke("train", config, "train.steps=20", *moved)
    assert "resumed after step 10" in result.stdout, result.output
    np.save(tmp_path / "elsewhere.npy", np.ones((8, 6, 4)))
    result = invoke("train", config, "train.steps=30", *moved)
    assert result.exit_code == 2
    assert "is a checkpoint of other data" in result.stderr


def started(tmp_path: Path, *arguments: str, num_ranks: int = 1) -> "subprocess.Popen[str]":
    """A run that goes on until it is killed, and has written a row."""
    start = alone if num_ranks == 1 else on_two_ranks
    command = start("train", small_config(tmp_path), f"run.dir={tmp_path}/run", "train.steps=100000000", *arguments)
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + LIMIT_S
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not metrics.exists() or not metrics.stat().st_size:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    return process


@pytest.mark.parametrize("resume", ["never", "auto"])
def test_a_second_run_in_a_live_folder_is_refused_and_one_after_a_kill_is_not(tmp_path: Path, resume: str) -> None:
    """The second took away what the first was writing, and rows and checkpoints of both were lost."""
    second = ["train", small_config(tmp_path), f"run.dir={tmp_path}/run", "train.resume=auto", "train.steps=5"]
    with started(tmp_path, "train.checkpoint_every=1000") as first:
        result = run(alone(*second[:3], f"train.resume={resume}"))
        still_runs = first.poll() is None
        first.kill()
    assert result.returncode == 2
    [line] = result.stderr.splitlines()
    wanted = "holds a run already" if resume == "never" else rf"is in use by process {first.pid} on "
    assert re.search(wanted, line)
    assert still_runs
    shutil.rmtree(tmp_path / "run" / "checkpoints", ignore_errors=True)  # however far it came
    result = run(alone(*second))
    assert result.returncode == 0, result.stderr


def test_a_folder_that_is_deleted_is_said_at_once_and_ends_with_1(tmp_path: Path) -> None:
    """It ended with 0, "run folder ...", and there was none."""
    with started(tmp_path, "train.log_every=100", "train.checkpoint_every=null") as process:
        shutil.rmtree(tmp_path / "run")
        assert process.stderr is not None
        line = process.stderr.readline()
        process.terminate()
        rest = process.stderr.read()
    assert process.returncode == 1
    assert line == (
        f"distsam: run.dir: {tmp_path}/run was moved or deleted, or its file lock was; training goes on, but nothing "
        "more is written\n"
    )
    [end] = rest.splitlines()
    assert end.startswith("distsam: the run is over, but not all of it is saved: run.dir: ")
    # A part of a run would be in the way of the next one.
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_folder_that_is_renamed_gets_no_second_half(tmp_path: Path, num_ranks: int) -> None:
    """Rows went on in the one, checkpoints and summary into a new one of the old name, and the exit code was 0."""
    with started(tmp_path, "train.log_every=100", "train.checkpoint_every=50", num_ranks=num_ranks) as process:
        while not finished_checkpoints(tmp_path / "run" / "checkpoints"):
            assert process.poll() is None
            time.sleep(0.05)
        (tmp_path / "run").rename(tmp_path / "moved")
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        line = next(line for line in lines if line.startswith("distsam:"))
        process.terminate()
        process.stderr.read()
    assert process.returncode == 1
    assert "was moved or deleted, or its file lock was; training goes on, but nothing more is written" in line
    assert not (tmp_path / "run").exists()
    assert invoke("evaluate", tmp_path / "moved").exit_code == 0


def test_no_file_of_a_run_is_writable_by_the_world(tmp_path: Path) -> None:
    limited = f"umask 0; exec {' '.join(alone('train', small_config(tmp_path), f'run.dir={tmp_path}/run'))}"
    result = run(["bash", "-c", limited])
    assert result.returncode == 0, result.stderr
    found = [tmp_path / "run", *(tmp_path / "run").rglob("*")]
    assert not [path for path in found if path.lstat().st_mode & stat.S_IWOTH]
    assert os.stat(tmp_path / "run").st_mode & 0o777 == 0o775


def test_links_in_a_run_folder_are_not_written_through(tmp_path: Path) -> None:
    config, run_dir, precious = small_config(tmp_path), tmp_path / "run", tmp_path / "precious"
    run_dir.mkdir()
    (run_dir / "metrics.jsonl").symlink_to(precious)
    assert invoke("train", config, f"run.dir={run_dir}").exit_code == 0
    assert not precious.exists()
    precious.write_text("kept")
    with (run_dir / "metrics.jsonl").open("ab") as stream:
        stream.write(b"no row\n")
    (run_dir / "metrics.jsonl.damaged").symlink_to(precious)
    assert invoke("train", config, f"run.dir={run_dir}", "train.resume=auto", "train.steps=30").exit_code == 0
    assert precious.read_text() == "kept"
    assert (run_dir / "metrics.jsonl.damaged").read_bytes() == b"no row\n"


@pytest.mark.parametrize("kept_lines", [0, 2])
def test_rows_that_are_gone_are_missed(tmp_path: Path, kept_lines: int) -> None:
    config, run_dir = small_config(tmp_path), tmp_path / "run"
    assert invoke("train", config, f"run.dir={run_dir}").exit_code == 0
    metrics = run_dir / "metrics.jsonl"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:kept_lines]))
    result = invoke("train", config, f"run.dir={run_dir}", "train.resume=auto", "train.steps=30")
    assert result.exit_code == 0
    found = "the last one is of step 1" if kept_lines else "there are none"
    assert f"metrics.jsonl: rows before step 20 are missing ({found})" in result.stderr
    assert "rows before" not in invoke("train", config, f"run.dir={run_dir}", "train.resume=auto").stderr


def test_a_config_that_was_changed_by_hand_scores_nothing(tmp_path: Path) -> None:
    """standardise: false gave other scores, without a word."""
    config, run_dir = small_config(tmp_path), tmp_path / "run"
    assert invoke("train", config, f"run.dir={run_dir}").exit_code == 0
    saved = run_dir / "config.yaml"
    saved.write_text(saved.read_text().replace("standardise: true", "standardise: false"))
    for command in (["evaluate", run_dir], ["predict", run_dir, "-o", tmp_path / "out.npz"]):
        result = invoke(*command)
        assert result.exit_code == 2
        assert f"{saved}: is not the config that" in result.stderr


def test_weights_that_give_no_numbers_are_said_to_have_diverged(tmp_path: Path) -> None:
    config, run_dir = small_config(tmp_path), tmp_path / "run"
    wild = ["optim.base=sgd", "optim.lr=1e120", "optim.method=base", "optim.alpha=null", "optim.max_skipped=3"]
    assert invoke("train", config, f"run.dir={run_dir}", *wild).exit_code == 1
    result = invoke("evaluate", run_dir)
    assert result.exit_code == 0
    assert "its weights give scores that are no finite numbers: it diverged" in result.stderr
    result = invoke("predict", run_dir, "-o", tmp_path / "out.npz")
    assert "of the predicted values are no finite numbers: the run diverged" in result.stderr


def test_evaluate_asks_for_data_that_are_gone(tmp_path: Path) -> None:
    np.save(tmp_path / "data.npy", np.random.default_rng(0).normal(size=(8, 6, 4)))
    config = small_config(tmp_path)
    assert invoke("train", config, f"run.dir={tmp_path}/run", *from_file(tmp_path / "data.npy")).exit_code == 0
    (tmp_path / "data.npy").unlink()
    result = invoke("evaluate", tmp_path / "run")
    assert result.exit_code == 2
    assert "data.path=FILE says where it lies now" in result.stderr


def test_values_whose_spread_is_rounding_are_said(tmp_path: Path) -> None:
    values = 1e16 + np.random.default_rng(0).normal(size=(8, 6, 4))
    np.save(tmp_path / "data.npy", values)
    result = invoke("train", small_config(tmp_path), f"run.dir={tmp_path}/run", *from_file(tmp_path / "data.npy"))
    assert result.exit_code == 0
    assert "differ by less than float64 can tell beside their mean, 1e+16" in result.stderr
