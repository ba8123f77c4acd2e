"""rho and alpha given as auto: one number for the whole run, on any ranks and engine, which a config can name."""

import json
import math
from pathlib import Path

import pytest
from command_line import assert_same_weights, invoke, on_two_ranks, run, small_config, timeless

from distsam.runs.checkpoints import finished_checkpoints
from distsam.runs.rows import read_rows

AUTO = ["optim.rho=auto", "optim.alpha=auto"]
# A task whose model starts elsewhere each time that it is built, as a user's may.
UNSEEDED = """
import os, torch, distsam

class Task:
    goal = distsam.Goal("all/mse", higher_is_better=False, columns=("mse",))

    def build_model(self):
        generator = torch.Generator().manual_seed(int.from_bytes(os.urandom(7), "big"))
        scale = float(torch.rand((), generator=generator)) + 0.5
        return distsam.TensorNetwork(distsam.cp((4, 3), 2), std=scale, generator=generator)

    def microbatches(self, step, count):
        return [None] * count

    def loss(self, model, batch):
        return (model.dense() - 1).square().mean()

    def evaluate(self, model):
        return {"all/mse": self.loss(model, None).item()}

def make(context):
    return Task()
"""


def train(folder: Path, name: str, *overrides: str) -> Path:
    result = invoke("train", small_config(folder), f"run.dir={folder}/{name}", *overrides)
    assert result.exit_code == 0, result.output
    return folder / name


def settled(run_dir: Path) -> dict[str, float]:
    """The numbers of the run, which all its rows must hold."""
    rows = [{k: v for k, v in row.items() if k.startswith("auto/")} for row in read_rows(run_dir / "metrics.jsonl")]
    assert all(row == rows[0] for row in rows)
    return rows[0]  # type: ignore[return-value]


@pytest.mark.parametrize("method", ["sam", "das", "nbar", "obar", "sam+das", "sam+nbar"])
def test_a_run_by_auto_is_the_run_of_the_numbers_that_it_names(tmp_path: Path, method: str) -> None:
    used = [key for key in AUTO if ("sam" in method and "rho" in key) or (method != "sam" and "alpha" in key)]
    unused = [] if "optim.alpha=auto" in used else ["optim.alpha=null"]
    by_auto = train(tmp_path, "auto", f"optim.method={method}", *used, *unused)
    numbers = settled(by_auto)
    assert sorted(numbers) == sorted(f"auto/{key[6:-5]}" for key in used)
    assert all(0 < number < math.inf for number in numbers.values())
    given = [f"optim.{name.removeprefix('auto/')}={number}" for name, number in numbers.items()]
    by_number = train(tmp_path, "number", f"optim.method={method}", *given, *unused)
    assert_same_weights(by_auto, by_number)
    without = [{k: v for k, v in row.items() if not k.startswith("auto/")} for row in timeless(by_auto)]
    assert without == timeless(by_number)


def test_the_numbers_stand_in_the_first_line_the_checkpoints_and_the_summary(tmp_path: Path) -> None:
    result = invoke("train", small_config(tmp_path), f"run.dir={tmp_path}/run", *AUTO)
    numbers = settled(tmp_path / "run")
    first = result.stdout.splitlines()[0]
    assert f"rho={numbers['auto/rho']:g} by auto; alpha={numbers['auto/alpha']:g} by auto" in first
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert {name: summary[name] for name in numbers} == numbers
    for checkpoint in finished_checkpoints(tmp_path / "run" / "checkpoints"):
        saved = json.loads((checkpoint / "state.json").read_text())["auto"]
        assert {f"auto/{key}": value for key, value in saved.items()} == numbers


@pytest.mark.parametrize("schedule", [[], ["optim.rho_schedule=linear", "optim.alpha_warmup_steps=4"]])
def test_a_resumed_run_is_bit_identical(tmp_path: Path, schedule: list[str]) -> None:
    # The shape of a schedule belongs to train.steps: the first part is ended early by its checkpoint instead.
    whole = train(tmp_path, "whole", *AUTO, *schedule)
    parts = train(tmp_path, "parts", *AUTO, *schedule)
    for checkpoint in finished_checkpoints(parts / "checkpoints")[-1:]:
        for file in checkpoint.iterdir():
            file.unlink()
        checkpoint.rmdir()
    (parts / "summary.json").unlink()
    train(tmp_path, "parts", *AUTO, *schedule, "train.resume=auto")
    assert_same_weights(whole, parts)
    assert timeless(whole) == timeless(parts)


def test_a_schedule_begins_at_the_number(tmp_path: Path) -> None:
    run_dir = train(tmp_path, "run", "optim.rho=auto", "optim.rho_schedule=linear", "optim.final_rho=0")
    number = settled(run_dir)["auto/rho"]
    state = json.loads((finished_checkpoints(run_dir / "checkpoints")[-1] / "state.json").read_text())
    assert state["engine"]["schedules"]["rho"] == {"step": 20}
    by_number = train(tmp_path, "number", f"optim.rho={number}", "optim.rho_schedule=linear", "optim.final_rho=0")
    assert_same_weights(run_dir, by_number)


def test_a_resumed_run_keeps_its_number_where_its_start_cannot_be_built_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "unseeded_start.py").write_text(UNSEEDED)
    (tmp_path / "own.yaml").write_text(
        "task: {target: 'unseeded_start:make'}\noptim: {method: sam, rho: auto}\n"
        "train: {steps: 4, log_every: 1, checkpoint_every: 2, num_threads: 1}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    rhos = []
    for name in ("one", "other"):
        assert invoke("train", "own.yaml", f"run.dir={name}").exit_code == 0
        rhos.append(settled(tmp_path / name)["auto/rho"])
    assert rhos[0] != rhos[1]
    result = invoke("train", "own.yaml", "run.dir=one", "train.steps=8", "train.resume=auto")
    assert result.exit_code == 0, result.output
    assert settled(tmp_path / "one")["auto/rho"] == rhos[0]


@pytest.mark.parametrize("plan", ["replicate", "fsdp"])
def test_two_ranks_have_the_number_of_one(tmp_path: Path, plan: str) -> None:
    """Weights as in the other tests: sums over ranks in another order, in float64, of 20 steps."""
    alone = train(tmp_path, "alone", *AUTO, "optim.base=sgd")
    command = on_two_ranks("train", small_config(tmp_path), f"run.dir={tmp_path}/two", *AUTO, "optim.base=sgd")
    done = run([*command, f"sharding.plan={plan}"])
    assert done.returncode == 0, done.stderr
    assert settled(tmp_path / "two") == settled(alone)
    assert_same_weights(alone, tmp_path / "two", tolerance=1e-12)


@pytest.mark.parametrize("stage", [1, pytest.param(3, marks=pytest.mark.soak)])
def test_deepspeed_has_the_number_of_torch(tmp_path: Path, stage: int) -> None:
    pytest.importorskip("deepspeed")
    single = ["network.dtype=float32", *AUTO]
    alone = train(tmp_path, "alone", *single)
    engine = ["engine.kind=deepspeed", f"engine.stage={stage}"]
    done = run(on_two_ranks("train", small_config(tmp_path), f"run.dir={tmp_path}/two", *single, *engine))
    assert done.returncode == 0, done.stderr
    assert settled(tmp_path / "two") == settled(alone)


def test_auto_that_the_method_does_not_use_is_computed_for_nobody(tmp_path: Path) -> None:
    run_dir = train(tmp_path, "run", "optim.method=base", "optim.rho=auto", "optim.alpha=auto")
    assert settled(run_dir) == {}
