"""`optim.base=als` by the command line: it trains, publishes what every run does, and refuses what it does not do."""

import json
from pathlib import Path

import pytest
from command_line import invoke, on_two_ranks, run

from distsam.runs.rows import read_rows

CONFIG = """
data: {source: lowrank, equation: "ar,br,cr->abc", sizes: {a: 12, b: 9, c: 8, r: 2}, noise: 0.1, observed: 0.5}
network: {format: cp, bond_dim: 2, dtype: float64}
optim: {method: base, base: als, weight_decay: 0.0001}
train: {steps: 20, log_every: 5, num_threads: 1}
"""


def config_in(folder: Path) -> Path:
    path = folder / "als.yaml"
    path.write_text(CONFIG)
    return path


@pytest.mark.parametrize("method", [[], ["optim.method=das", "optim.alpha=0.01", "optim.lr=0.01"]])
def test_a_run_fits_held_out_entries_and_publishes_the_balance_of_its_cores(tmp_path: Path, method: list[str]) -> None:
    done = invoke("train", config_in(tmp_path), f"run.dir={tmp_path}/run", *method)
    assert done.exit_code == 0, done.output
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["heldout/r2"] > 0.97
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    # As Adam's: loss, norms of cores and gradients, what would be skipped.
    keys = {"train/loss", "sam/grad_norm", "sam/skipped", "balance/network/norm_deviation"}
    assert [row["train/step"] for row in rows] == [0, 1, 5, 10, 15, 20]
    assert all(keys <= row.keys() for row in rows[1:])
    assert ("das/clipped" in rows[-1]) == bool(method)


def test_two_ranks_come_to_the_scores_of_one_and_a_resume_goes_on(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert invoke("train", config, f"run.dir={whole}").exit_code == 0
    run(on_two_ranks("train", config, f"run.dir={parts}", "train.steps=10"))
    done = invoke("train", config, f"run.dir={parts}", "train.resume=auto")
    assert done.exit_code == 0, done.output
    found = [json.loads((folder / "summary.json").read_text())["last/heldout/rmse"] for folder in (whole, parts)]
    assert found[0] == pytest.approx(found[1], rel=1e-9)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("optim.method=sam", "optim.method: sam steps along the gradient at other weights, and optim.base=als uses no"),
        ("optim.method=sam+das optim.alpha=1", "optim.method: sam+das steps along"),
        ("optim.lr=0.1", "optim.lr: 0.1 is not used by optim.base=als, which has no learning rate; leave it out"),
        ("optim.lr=auto", "optim.lr: auto is known for optim.base=adam and adamw, not for als; give a number"),
        ("optim.schedule=cosine", "optim.schedule: cosine is not used by optim.base=als"),
        ("optim.momentum=0.9", "optim.momentum: 0.9 is not used by optim.base=als; it is for sgd"),
        ("optim.clip_norm=1", "optim.clip_norm: 1.0 is not used by optim.base=als, which uses no gradient"),
        ("train.batch_size=50", "train.batch_size: 50 is not used by optim.base=als, which takes all training"),
        ("train.batch_size=auto", "train.batch_size: auto is not used by optim.base=als"),
        ("sharding.plan=fsdp", "sharding.plan: fsdp cuts the weights, and optim.base=als needs all of them on every"),
        ("engine.kind=deepspeed engine.stage=0", "engine.kind: deepspeed is not known to optim.base=als; use native"),
        (
            "network.format=tucker network.ranks=[12,9,8] network.bond_dim=null data.sizes={a: 20, b: 20, c: 20, r: 2}"
            " network.ranks=[17,17,17]",
            "optim.base: core central has 4,913 unknowns that hang together; at most 4,096",
        ),
    ],
)
def test_what_it_does_not_do_is_refused(tmp_path: Path, override: str, says: str) -> None:
    overrides = [part.replace("\0", " ") for part in override.replace(": ", ":\0").replace(", ", ",\0").split(" ")]
    done = invoke("train", config_in(tmp_path), f"run.dir={tmp_path}/run", *overrides)
    assert done.exit_code == 2, done.output
    [line] = done.stderr.splitlines()
    assert says in line
    assert len(line) <= 370
    assert not (tmp_path / "run").exists()


def test_other_tasks_and_the_dry_run_are_refused(tmp_path: Path) -> None:
    done = invoke("plan", config_in(tmp_path), "--world-size", "2")
    assert done.exit_code == 2
    assert "optim.base: als: the dry run knows no values" in done.stderr
    (tmp_path / "digits.yaml").write_text(
        "task: {kind: classification}\ndata: {source: digits}\nmodel: {kind: mlp}\n"
        "optim: {method: base, base: als}\ntrain: {steps: 2, batch_size: 10}\n"
    )
    done = invoke("train", tmp_path / "digits.yaml", f"run.dir={tmp_path}/run")
    assert done.exit_code == 2
    assert "optim.base: als solves for the entries of a tensor, which task.kind=classification does not" in done.stderr
