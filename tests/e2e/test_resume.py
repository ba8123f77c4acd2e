"""A run that was interrupted ends as if it had not been."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from command_line import (
    LIMIT_S,
    ROOT,
    alone,
    assert_same_weights,
    environment,
    invoke,
    on_two_ranks,
    run,
    small_config,
    timeless,
    torchrun,
    weights,
)

from distsam.runs.checkpoints import finished_checkpoints
from distsam.runs.rows import read_rows

LONG = ["train.steps=100000", "train.log_every=100", "train.checkpoint_every=200"]


@pytest.mark.parametrize("extra", [[], ["train.batch_size=7"], ["optim.base=sgd", "optim.momentum=0.9"]])
def test_resume_is_bit_identical_in_weights_state_and_scores(tmp_path: Path, extra: list[str]) -> None:
    config = small_config(tmp_path)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert invoke("train", config, f"run.dir={whole}", *extra).exit_code == 0
    for steps in (5, 10, 20):
        command = ["train", config, f"run.dir={parts}", f"train.steps={steps}", "train.resume=auto"]
        assert invoke(*command, *extra).exit_code == 0
    assert_same_weights(whole, parts)
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (whole, parts)]
    for name in ("heldout/r2", "best_step", "sam/skipped", "balance/network/norm_deviation", "last/train/r2"):
        assert summaries[0][name] == summaries[1][name], name
    assert timeless(whole)[-1] == timeless(parts)[-1]
    assert [row["train/step"] for row in timeless(parts)] == [0, 1, 5, 10, 15, 20]


@pytest.mark.parametrize("extra", [[], ["train.early_stopping=1", "optim.lr=0.5", "train.steps=500"]])
def test_a_finished_run_is_left_as_it_is_by_resume(tmp_path: Path, extra: list[str]) -> None:
    """A resume that took no step replaced what only a step can measure, the rates of the balance, by nulls."""
    command = ["train", small_config(tmp_path), f"run.dir={tmp_path}/run", "train.resume=auto", *extra]
    assert invoke(*command).exit_code == 0
    rows = timeless(tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["balance/network/measured_rate"] is not None
    assert invoke(*command).exit_code == 0
    assert timeless(tmp_path / "run") == rows
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary


def test_two_ranks_leave_the_summary_of_a_finished_run_as_it_is(tmp_path: Path) -> None:
    command = ["train", small_config(tmp_path), f"run.dir={tmp_path}/run", "train.resume=auto"]
    assert invoke(*command).exit_code == 0
    summary = (tmp_path / "run" / "summary.json").read_text()
    result = run(on_two_ranks(*command))
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run" / "summary.json").read_text() == summary


def test_a_lost_summary_is_written_again(tmp_path: Path) -> None:
    command = ["train", small_config(tmp_path), f"run.dir={tmp_path}/run", "train.resume=auto"]
    assert invoke(*command).exit_code == 0
    file = tmp_path / "run" / "summary.json"
    summary = json.loads(file.read_text())
    file.unlink()
    assert invoke(*command).exit_code == 0
    assert json.loads(file.read_text())["heldout/r2"] == summary["heldout/r2"]


def test_a_longer_run_after_the_end_is_bit_identical_to_one_never_ended(tmp_path: Path) -> None:
    """The evaluation of the last step, which a longer run would not have had, counted for the best weights."""
    config = small_config(tmp_path)
    more = ["optim.lr=0.001", "data.noise=0", "train.log_every=5"]  # better with every step
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert invoke("train", config, f"run.dir={whole}", "train.steps=13", *more).exit_code == 0
    command = ["train", config, f"run.dir={parts}", "train.resume=auto", *more]
    assert invoke(*command, "train.steps=8").exit_code == 0
    first = json.loads((parts / "summary.json").read_text())
    assert (first["best_step"], first["weights"]) == (8, "best")
    scores = json.loads(invoke("evaluate", parts, "--json").stdout)
    assert scores["validation/r2"] == pytest.approx(first["last/validation/r2"], rel=1e-12)
    assert invoke(*command, "train.steps=13").exit_code == 0
    assert_same_weights(whole, parts)
    states = [state_of(folder) for folder in (whole, parts)]
    for key in ("best_value", "best_step", "num_stale", "last_is_best"):
        assert states[0][key] == states[1][key], key


def state_of(run_dir: Path) -> dict[str, Any]:
    newest = finished_checkpoints(run_dir / "checkpoints")[-1]
    return json.loads((newest / "state.json").read_text())


def test_a_diverged_run_goes_on_from_its_last_good_weights_with_another_rate(tmp_path: Path) -> None:
    """It kept nothing since the last checkpoint, and what it kept of an earlier one raised again at once."""
    config, run_dir = small_config(tmp_path), tmp_path / "run"
    common = ["train", config, f"run.dir={run_dir}", "optim.base=sgd", "train.resume=auto", "optim.max_skipped=3"]
    assert invoke(*common, "train.steps=6", "optim.lr=1e-3").exit_code == 0
    good = weights(run_dir)
    # A rate at which the first step gives weights whose loss overflows would spoil them: rho does not.
    result = invoke(*common, "train.steps=20", "optim.rho=1e200")
    assert result.exit_code == 1, result.output
    state = state_of(run_dir)
    counters = state["engine"]["counters"]
    assert state["step"] == counters["num_steps"] == 9
    assert (counters["num_skipped"], counters["num_in_a_row"]) == (3, 0)
    kept = weights(run_dir)
    assert all(kept[name].tobytes() == good[name].tobytes() for name in good if name.startswith("model."))
    assert invoke(*common, "train.steps=20", "optim.lr=1e-3").exit_code == 0
    assert json.loads((run_dir / "summary.json").read_text())["sam/skipped"] == 3
    assert [row["train/step"] for row in timeless(run_dir)] == [0, 1, 5, 6, 10, 15, 20]


def test_a_run_killed_before_its_config_was_written_starts_afresh(tmp_path: Path) -> None:
    """Such a folder held an empty checkpoints/ or a part of one, and was refused for having no config.yaml."""
    (tmp_path / "run" / "checkpoints" / "step-00000005.tmp").mkdir(parents=True)
    assert invoke("train", small_config(tmp_path), f"run.dir={tmp_path}/run", "train.resume=auto").exit_code == 0
    assert timeless(tmp_path / "run")[-1]["train/step"] == 20


def test_the_config_is_there_before_anything_else_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def die(*_: object) -> None:
        seen.append(sorted(path.name for path in (tmp_path / "run").iterdir()))
        raise KeyboardInterrupt

    monkeypatch.setattr("distsam.train.run.Checkpointer", die)
    command = ["train", small_config(tmp_path), f"run.dir={tmp_path}/run", "train.resume=auto"]
    assert invoke(*command).exit_code != 0
    assert seen == [["config.yaml", "lock"]]


def test_a_run_on_two_ranks_goes_on_alone_and_back(tmp_path: Path) -> None:
    config = small_config(tmp_path)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert invoke("train", config, f"run.dir={whole}", "train.steps=40").exit_code == 0
    common = ["train", config, f"run.dir={parts}", "train.resume=auto", "sharding.plan=fsdp"]
    result = run(on_two_ranks(*common, "train.steps=20"))
    assert result.returncode == 0, result.stderr
    assert invoke(*common, "train.steps=30").exit_code == 0
    result = run(on_two_ranks(*common, "train.steps=40"))
    assert result.returncode == 0, result.stderr
    assert_same_weights(whole, parts, tolerance=1e-12)


def wait_for_checkpoint(run_dir: Path) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not list((run_dir / "checkpoints").glob("step-????????")):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 0), ("SIGUSR1", 0), ("SIGINT", 130)])
def test_a_signal_ends_the_run_in_good_order(tmp_path: Path, name: str, code: int) -> None:
    run_dir = tmp_path / "run"
    command = alone("train", small_config(tmp_path), f"run.dir={run_dir}", *LONG)
    with subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL) as process:
        wait_for_checkpoint(run_dir)
        process.send_signal(signal.Signals[name])
        assert process.wait(timeout=LIMIT_S) == code
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["stopped_by"] == name
    assert (run_dir / "checkpoints" / f"step-{summary['steps']:08d}").is_dir()
    assert read_rows(run_dir / "metrics.jsonl")[-1]["train/step"] == summary["steps"]


def test_a_signal_to_one_of_two_ranks_stops_both_at_the_same_step(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    pids = "import os, pathlib; pathlib.Path(os.environ['PIDS'], os.environ['RANK']).write_text(str(os.getpid()))"
    script = tmp_path / "with_pid.py"
    script.write_text(f"{pids}\nfrom distsam.cli import main\nmain()\n")
    command = [*torchrun(), str(script), "train", str(small_config(tmp_path)), f"run.dir={run_dir}", *LONG]
    (tmp_path / "pids").mkdir()
    env = environment(PIDS=str(tmp_path / "pids"))
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        wait_for_checkpoint(run_dir)
        os.kill(int((tmp_path / "pids" / "1").read_text()), signal.SIGTERM)
        _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, errors.decode()
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["stopped_by"] == "a signal to another rank"
    assert (run_dir / "checkpoints" / f"step-{summary['steps']:08d}").is_dir()


def test_killed_at_random_moments_the_run_ends_bit_for_bit_the_same(tmp_path: Path) -> None:
    script = ROOT / "tests" / "e2e" / "kill_and_resume.py"
    result = run([sys.executable, str(script), "1", "--folder", str(tmp_path), "--seed", "0"])
    assert result.returncode == 0, result.stdout + result.stderr
    assert "1 kills" in result.stdout


# DeepSpeed takes no float64.
SINGLE = ["network.dtype=float32"]


@pytest.mark.soak
@pytest.mark.parametrize(
    ("num_ranks", "num_kills", "keys"),
    [
        (1, 34, []),
        (2, 34, []),
        (4, 32, []),
        *((2, 10, ["engine.kind=deepspeed", f"engine.stage={stage}", *SINGLE]) for stage in (2, 3)),
    ],
)
def test_a_hundred_kills_cost_no_bit(num_ranks: int, num_kills: int, keys: list[str]) -> None:
    script = ROOT / "tests" / "e2e" / "kill_and_resume.py"
    options = [str(num_kills), "--ranks", str(num_ranks), "--seed", str(num_ranks)]
    options += [f"--set={key}" for key in keys]
    subprocess.run([sys.executable, str(script), *options], env=environment(), check=True)
