"""sharding.plan=auto, a plan from a file, and a run that does not fit, as users meet them."""

import os
from pathlib import Path

import yaml
from command_line import ROOT, assert_same_weights, invoke, on_two_ranks, run, small_config, timeless

ROWS = """
data: {source: lowrank, equation: "ar,br->ab", sizes: {a: 60000, b: 10, r: 2}, noise: 0.1, observed: 0.6}
network: {format: cp, bond_dim: 8, init_std: 1.0}
optim: {method: sam, base: adam, lr: 0.01}
train: {steps: 6, log_every: 3, batch_size: 4000, num_threads: 1}
"""


def test_auto_on_two_ranks_trains_as_replicate_and_a_pinned_plan_with_the_same_numbers(tmp_path: Path) -> None:
    config, pinned = small_config(tmp_path), tmp_path / "plan.json"
    saved = invoke("plan", config, "sharding.plan=replicate", "--world-size", 2, "--save", pinned)
    assert saved.exit_code == 0, saved.output
    says = {}
    for name, plan in (("auto", None), ("copies", "replicate"), ("file", pinned)):
        more = [] if plan is None else [f"sharding.plan={plan}"]
        done = run(on_two_ranks("train", config, f"run.dir={tmp_path / name}", *more))
        assert done.returncode == 0, done.stderr
        says[name] = done.stdout.splitlines()[0]
    assert says["auto"].endswith("; plan replicate on 2 ranks by auto")
    assert says["copies"].endswith("; plan replicate on 2 ranks")
    assert says["file"] == says["copies"]
    for name in ("copies", "file"):
        assert_same_weights(tmp_path / "auto", tmp_path / name)
        assert timeless(tmp_path / "auto") == timeless(tmp_path / name)
    kept = {name: yaml.safe_load((tmp_path / name / "config.yaml").read_text())["sharding"]["plan"] for name in says}
    assert kept == {"auto": "auto", "copies": "replicate", "file": str(pinned)}


def test_a_plan_for_other_ranks_is_refused_with_what_would_do(tmp_path: Path) -> None:
    config, pinned = small_config(tmp_path), tmp_path / "plan.json"
    assert invoke("plan", config, "sharding.plan=fsdp", "--world-size", 2, "--save", pinned).exit_code == 0
    done = invoke("train", config, f"run.dir={tmp_path}/run", f"sharding.plan={pinned}")
    assert done.exit_code == 2
    assert done.stderr.startswith(
        f"distsam: sharding.plan: {pinned}: made for 2 ranks (2 (shard)), and this world has 1"
    )
    assert not (tmp_path / "run").exists()


def test_a_run_that_does_not_fit_is_refused_unless_it_is_to_be_tried(tmp_path: Path) -> None:
    train = ["train", small_config(tmp_path), f"run.dir={tmp_path}/run", "sharding.memory_gib=1e-6"]
    done = invoke(*train)
    assert done.exit_code == 2
    [line] = done.stderr.splitlines()
    assert "plan replicate needs 2.84 KiB of memory on one rank, 876 bytes of it for a checkpoint's copy" in line
    assert "sharding.memory_gib gives 1.05 KiB; no plan fits on 1 rank" in line
    assert not (tmp_path / "run").exists()
    assert invoke(*train, "sharding.fits=ignore", "train.steps=2").exit_code == 0


def test_a_plan_that_would_fit_is_named(tmp_path: Path) -> None:
    plan = ["plan", small_config(tmp_path), "--world-size", 2, "sharding.memory_gib=1.7e-6"]
    done = invoke(*plan, "sharding.plan=replicate")
    assert done.exit_code == 2
    assert "plan fsdp (2 (shard)) would fit, and sharding.plan=auto takes the fastest that does" in done.stderr
    done = invoke(*plan)
    assert done.exit_code == 0, done.output
    # Of 36 parameters both plans that fit take a few microseconds: which is faster, the cost model may change.
    assert done.stdout.startswith(
        ("plan bond on a mesh of 1 (replicate) x 2 (bond)", "plan fsdp on a mesh of 2 (shard)")
    )
    assert "  not replicate on 2 (replicate): " in done.stdout


def test_auto_cuts_bonds_where_only_that_fits_and_resumes_alone(tmp_path: Path) -> None:
    train = ["train", small_config(tmp_path), f"run.dir={tmp_path}/run"]
    done = run(on_two_ranks(*train, "sharding.memory_gib=1.6e-6"))
    assert done.returncode == 0, done.stderr
    assert "; plan bond on 2 ranks by auto (1 (replicate) x 2 (bond))" in done.stdout.splitlines()[0]
    more = invoke(*train, "train.steps=25", "train.resume=auto")
    assert more.exit_code == 0, more.output
    assert "; plan replicate on 1 rank; resumed after step 20" in more.stdout.splitlines()[0]


SUMMED = """
import torch, distsam
from torch import nn

class Task:
    goal = distsam.Goal("train/loss", higher_is_better=False, columns=("loss",))

    def __init__(self, context):
        self.context = context

    def build_model(self):
        return nn.Sequential(*(
            distsam.TensorizedLinear(64, 64, format="tt_matrix", rank=16, in_shape=(4, 4, 4), out_shape=(4, 4, 4))
            for _ in range(20)
        ))

    def microbatches(self, step, count):
        return [torch.ones(8 // count, 64) for _ in range(count)]

    def loss(self, model, batch):
        total = torch.tensor([float(len(batch))])
        self.context.sum_over_ranks(total)
        print(type(batch).__name__)
        return (model(batch) - batch).square().sum() / total.sum()

    def evaluate(self, model):
        return {"train/loss": 0.0}
"""


def test_a_loss_that_sums_over_ranks_is_looked_at_by_one_rank_alone(tmp_path: Path) -> None:
    """Rank 0 waited in the sum for the others, which waited for its plan."""
    (tmp_path / "summed.py").write_text(SUMMED)
    (tmp_path / "summed.yaml").write_text(
        "task: {kind: target, target: 'summed:Task'}\noptim: {method: base, base: adamw, lr: 0.001}\n"
        "train: {steps: 2, log_every: 1}\nsharding: {device: cpu, memory_gib: 0.002}\n"
    )
    train = on_two_ranks("train", tmp_path / "summed.yaml", f"run.dir={tmp_path}/run")
    done = run(train, PYTHONPATH=os.pathsep.join([str(ROOT), str(tmp_path)]))
    assert done.returncode == 0, done.stderr
    assert " on 2 ranks by auto" in done.stdout
    assert "FakeTensor" in done.stdout  # after the sum


def test_rows_are_divided_where_auto_finds_it_fastest_and_a_pinned_plan_divides_them_alike(tmp_path: Path) -> None:
    """One mode holds nearly all parameters: copies would send all of its gradients, pieces all of its weights."""
    config, pinned = tmp_path / "rows.yaml", tmp_path / "plan.json"
    config.write_text(ROWS)
    saved = invoke("plan", config, "sharding.plan=mode", "--world-size", 2, "--save", pinned)
    assert saved.exit_code == 0, saved.output
    for name, plan in (("auto", "auto"), ("mode", "mode"), ("file", pinned)):
        done = run(on_two_ranks("train", config, f"run.dir={tmp_path / name}", f"sharding.plan={plan}"))
        assert done.returncode == 0, done.stderr
        assert ("; plan mode on 2 ranks by auto" in done.stdout) == (name == "auto")
        assert "; plan mode on 2 ranks" in done.stdout
    for name in ("auto", "file"):
        assert_same_weights(tmp_path / "mode", tmp_path / name)
