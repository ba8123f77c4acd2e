"""Classification by the command line: trained, resumed, alike on two ranks, its mistakes in one line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import (
    alone,
    assert_one_run_however_it_is_cut,
    assert_same_weights,
    invoke,
    on_two_ranks,
    run,
    timeless,
)

CONFIG = """
task: {kind: classification}
data: {source: npz, path: data.npz, heldout: 0.25, validation: 0.2}
model: {kind: mlp, widths: [16, 16], tensorize: {"type:Linear": {format: tt, rank: 2}}}
optim: {method: sam+das, base: adam, lr: 0.01, alpha: 0.01, rho: 0.05}
train: {steps: 40, batch_size: 24, log_every: 10, checkpoint_every: 20, num_threads: 1, precision: float64}
"""

OWN = """
task: {kind: classification}
data: {target: "mine:data", arguments: {num: 200}}
model: {target: "mine:model", arguments: {width: 16}}
optim: {method: sam, base: adam, lr: 0.05, rho: 0.05}
train: {steps: 60, log_every: 20}
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three clouds of points in 12 dimensions, far enough apart to be told."""
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    classes = np.arange(240) % 3
    centres = 2 * draw.normal(size=(3, 12))
    np.savez("data.npz", X=centres[classes] + draw.normal(size=(240, 12)), y=classes)
    path = tmp_path / "classes.yaml"
    path.write_text(CONFIG)
    return path


def summary_of(folder: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path(folder, "summary.json").read_text())
    return content


def test_a_run_learns_shows_each_networks_balance_and_is_evaluated(config: Path) -> None:
    done = invoke("train", config, "run.dir=run", "train.steps=150")
    assert done.exit_code == 0, done.output
    assert "3 classes of inputs of 12; 144 training, 36 validation, 60 held-out examples" in done.output
    summary = summary_of("run")
    assert summary["heldout/accuracy"] > 0.9
    assert summary["heldout/top5"] is None
    assert list(summary["networks"]) == ["1.network", "4.network", "7.network"]
    assert {"balance/1.network/norm_deviation", "heldout/ece", "heldout/cross_entropy"} <= set(summary)
    evaluated = invoke("evaluate", "run")
    assert evaluated.exit_code == 0, evaluated.output
    assert f"{summary['heldout/accuracy']:.4g}" in evaluated.output


def test_a_model_without_networks_has_the_same_rows_but_for_the_balance(config: Path) -> None:
    assert invoke("train", config, "run.dir=with").exit_code == 0
    assert invoke("train", config, "run.dir=without", "model.tensorize=null", "optim.method=sam").exit_code == 0
    rows, others = timeless(Path("without")), timeless(Path("with"))
    assert [row["train/step"] for row in rows] == [0, 1, 10, 20, 30, 40]
    for row, other in zip(rows, others, strict=True):
        assert set(row) == {key for key in other if not key.startswith(("balance/", "das/"))}
        assert row["train/step"] == 0 or row["train/loss"] is not None


def test_a_run_in_two_parts_and_on_two_ranks_is_the_same_run(config: Path) -> None:
    assert_one_run_however_it_is_cut(config)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.path=nix.npz"], "nix.npz: no such file"),
        (["data.num_classes=2"], "y has class 2, and num_classes is 2; it must be at least 3"),
        (["model.tensorize={lin*: {rank: 2}}"], "model.tensorize[lin*]: fits no layer; there are 1, 4, 7"),
        (["model.kind=resnet20", "model.widths=null"], "resnet20, for images; these inputs"),
        (["data.target=math:sqrt", "data.path=null"], "data.source"),
        (["data.label_noise=1.5"], "data.label_noise"),
        (["train.batch_size=500"], "train.batch_size: is 500; it must be 1 to 144"),
        (["data.observed=0.5"], "data.observed"),
    ],
)
def test_what_cannot_be_is_one_line_and_exit_code_2(config: Path, overrides: list[str], message: str) -> None:
    done = invoke("train", config, "run.dir=run", *overrides)
    assert done.exit_code == 2
    assert message in done.output
    assert done.output.strip().count("\n") == 0
    assert not Path("run").exists()


def test_running_statistics_of_two_ranks_are_evaluated_and_resumed_as_they_were_scored(config: Path) -> None:
    draw = np.random.default_rng(1)
    classes = np.arange(60) % 3
    np.savez("images.npz", X=draw.normal(size=(60, 1, 8, 8)) + classes[:, None, None, None], y=classes)
    keys = ["data.path=images.npz", "model.kind=resnet20", "model.widths=null", "model.width=4", "model.tensorize=null"]
    keys += ["optim.method=sam", "train.batch_size=16", "train.log_every=5", "train.checkpoint_every=5"]
    for name, steps in (("whole", 10), ("parts", 5), ("parts", 10)):
        more = (f"run.dir={name}", f"train.steps={steps}", "train.resume=auto")
        done = run(on_two_ranks("train", config, *keys, *more))
        assert done.returncode == 0, done.stderr
    assert_same_weights(Path("whole"), Path("parts"))
    done = run(alone("evaluate", "whole", "--json"))
    assert done.returncode == 0, done.stderr
    scores, summary = json.loads(done.stdout), summary_of("whole")
    for key in ("heldout/accuracy", "heldout/cross_entropy", "train/cross_entropy"):
        # The same sums in another order, in float64.
        assert scores[key] == pytest.approx(summary[key], rel=1e-9), key


@pytest.mark.parametrize("method", ["das", "nbar"])
def test_a_peft_model_is_trained_and_every_pair_has_its_deviation_in_the_rows(config: Path, method: str) -> None:
    Path("lora.py").write_text(
        "import peft, torch\n"
        "def model():\n"
        "    torch.manual_seed(0)\n"
        "    model = torch.nn.Sequential(torch.nn.Linear(12, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))\n"
        "    return peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=['0', '2']))\n"
    )
    own = CONFIG.replace(CONFIG.splitlines()[3], 'model: {target: "lora:model"}').replace(", rho: 0.05", "")
    config.write_text(own)
    done = run(alone("train", config, "run.dir=run", f"optim.method={method}"))
    assert done.returncode == 0, done.stderr
    assert "94 of 353 parameters trained" in done.stdout
    rows = timeless(Path("run"))
    for pair in ("0", "2"):
        key = f"balance/base_model.model.{pair}.default/norm_deviation"
        # B starts at zero, A does not.
        assert all(row[key] > 0 for row in rows)
        assert rows[-1][key] != rows[0][key]
    assert rows[-1]["train/loss"] < rows[1]["train/loss"]


def test_the_users_own_data_and_model_are_taken(config: Path) -> None:
    Path("mine.py").write_text(
        "import numpy as np, torch\n"
        "def data(num):\n"
        "    y = np.arange(num) % 2\n"
        "    return np.stack([y, 1 - y], 1) + 0.1 * np.random.default_rng(0).normal(size=(num, 2)), y\n"
        "def model(width):\n"
        "    return torch.nn.Sequential(torch.nn.Linear(2, width), torch.nn.ReLU(), torch.nn.Linear(width, 2))\n"
    )
    config.write_text(OWN)
    done = run(alone("train", config, "run.dir=run"))
    assert done.returncode == 0, done.stderr
    assert summary_of("run")["heldout/accuracy"] == 1
