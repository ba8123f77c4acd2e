"""Schedules, momentum, accumulation, clipping through `distsam train`: killed, resumed, on other numbers of ranks."""

import json
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
    weights,
)

from distsam.runs.checkpoints import finished_checkpoints

SCHEDULED = [
    *("optim.method=sam", "optim.base=sgd", "optim.momentum=0.9", "optim.lr=0.02", "optim.schedule=cosine"),
    *("optim.warmup_steps=7", "optim.final_lr=0.001", "optim.rho_schedule=linear", "optim.final_rho=0.001"),
    *("optim.rho_warmup_steps=3", "optim.clip_norm=0.5", "train.accumulate=2"),
]


def train_until_killed(config: Path, run_dir: Path, *overrides: str) -> None:
    command = alone("train", config, f"run.dir={run_dir}", "train.checkpoint_every=10", *overrides)
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    began = time.monotonic()
    try:
        while not finished_checkpoints(run_dir / "checkpoints"):
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() - began < LIMIT_S
            time.sleep(0.002)
    finally:
        process.kill()
    assert process.wait(timeout=LIMIT_S) == -signal.SIGKILL


@pytest.mark.soak
def test_a_scheduled_run_that_is_killed_and_resumed_is_bit_identical(tmp_path: Path) -> None:
    config, whole, parts = small_config(tmp_path), tmp_path / "whole", tmp_path / "parts"
    length = ["train.steps=2000", "train.log_every=500", "train.checkpoint_every=10"]
    assert invoke("train", config, f"run.dir={whole}", *length, *SCHEDULED).exit_code == 0
    train_until_killed(config, parts, *length, *SCHEDULED)
    assert 0 < int(finished_checkpoints(parts / "checkpoints")[-1].name.removeprefix("step-")) < 2000
    assert invoke("train", config, f"run.dir={parts}", "train.resume=auto", *length, *SCHEDULED).exit_code == 0
    assert_same_weights(whole, parts)
    assert timeless(whole) == timeless(parts)


def test_a_scheduled_run_goes_on_alike_on_another_number_of_ranks(tmp_path: Path) -> None:
    """Its schedules are functions of the step. Sums over ranks add in another order: rounding of float64, which 20
    steps of a contracting descent do not enlarge beyond 1e-12."""
    config, whole, parts = small_config(tmp_path), tmp_path / "whole", tmp_path / "parts"
    assert invoke("train", config, f"run.dir={whole}", *SCHEDULED).exit_code == 0
    # The shape of a schedule belongs to train.steps, so the first part is ended by a kill.
    train_until_killed(config, parts, *SCHEDULED, "train.checkpoint_every=5")
    for checkpoint in finished_checkpoints(parts / "checkpoints"):
        assert checkpoint.name <= "step-00000020"
    sharded = on_two_ranks("train", config, f"run.dir={parts}", "train.resume=auto", "sharding.plan=fsdp", *SCHEDULED)
    assert run(sharded).returncode == 0
    assert_same_weights(whole, parts, tolerance=1e-12)


def test_values_of_groups_and_schedules_stand_in_the_checkpoint(tmp_path: Path) -> None:
    config, run_dir = small_config(tmp_path), tmp_path / "run"
    assert invoke("train", config, f"run.dir={run_dir}", *SCHEDULED).exit_code == 0
    newest = finished_checkpoints(run_dir / "checkpoints")[-1]
    engine = json.loads((newest / "state.json").read_text())["engine"]
    assert engine["schedules"] == {"lr": {"step": 20}, "rho": {"step": 20}}
    assert engine["groups"][0]["momentum"] == 0.9
    assert any(name.endswith(".momentum_buffer") for name in weights(run_dir))


def test_a_resume_with_another_rate_takes_it(tmp_path: Path) -> None:
    config, run_dir = small_config(tmp_path), tmp_path / "run"
    command = ["train", config, f"run.dir={run_dir}", "train.resume=auto"]
    assert invoke(*command, "train.steps=5").exit_code == 0
    before = weights(run_dir)
    assert invoke(*command, "train.steps=6", "optim.lr=1e-30", "optim.alpha=0").exit_code == 0
    after = weights(run_dir)
    assert all(np.array_equal(before[name], after[name]) for name in before if name.startswith("model."))


@pytest.mark.soak
@pytest.mark.parametrize("method", ["base", "sam", "das", "sam+das"])
def test_micro_batches_change_a_run_by_rounding_alone(tmp_path: Path, method: str) -> None:
    """A sum in another order, in float64: about 1e-16 a step and term; Adam divides by the root of tiny moments."""
    config = small_config(tmp_path)
    common = ["train", config, f"optim.method={method}", "optim.base=sgd", "train.steps=10"]
    for count in (1, 2, 4):
        assert invoke(*common, f"run.dir={tmp_path}/{count}", f"train.accumulate={count}").exit_code == 0
    for plan in ("replicate", "fsdp"):
        extra = [f"run.dir={tmp_path}/{plan}", f"sharding.plan={plan}", "train.accumulate=4"]
        assert run(on_two_ranks(*common, *extra)).returncode == 0
    for other in ("2", "4", "replicate", "fsdp"):
        assert_same_weights(tmp_path / "1", tmp_path / other, tolerance=1e-12)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("float32", np.float32), ("float64", np.float64), ("bf16", np.float32)]
)
def test_weights_have_the_precision_of_the_run(tmp_path: Path, precision: str, dtype: type) -> None:
    run_dir = tmp_path / "run"
    longer = ["train.steps=100", "optim.lr=0.05", "network.dtype=null", f"train.precision={precision}"]
    result = invoke("train", small_config(tmp_path), f"run.dir={run_dir}", *longer)
    assert result.exit_code == 0, result.output
    assert all(w.dtype == dtype for name, w in weights(run_dir).items() if name.startswith("model."))
    assert json.loads((run_dir / "summary.json").read_text())["train/r2"] > 0.5
