"""Every key of a config reaches what it configures."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import distsam
from distsam.optim import Wrapper
from distsam.sharding import Layout
from distsam.train.build import build_model, build_optimizer, build_task
from distsam.train.config import Config
from distsam.train.config_file import load_config

SMALL = """
data: {source: lowrank, equation: "ar,br,cr->abc", sizes: {a: 8, b: 6, c: 4, r: 2}, observed: 0.9}
network: {format: cp, bond_dim: 2}
optim: {method: base}
train: {steps: 3}
"""


def config_of(tmp_path: Path, *overrides: str) -> Config:
    (tmp_path / "small.yaml").write_text(SMALL)
    return load_config(tmp_path / "small.yaml", overrides)


def optimizer_of(tmp_path: Path, *overrides: str) -> Wrapper:
    model = distsam.TensorNetwork(distsam.cp((8, 6, 4), 2))
    return build_optimizer(config_of(tmp_path, *(f"optim.{o}" for o in overrides)), model)


@pytest.mark.parametrize(
    ("overrides", "kind", "attributes"),
    [
        (["method=sam", "rho=0.3", "scope=core"], distsam.SAM, {"rho": 0.3, "scope": "core"}),
        (["method=sam", "scope=network"], distsam.SAM, {"rho": 0.05, "scope": "network"}),
        (
            ["method=das", "alpha=0.7", "norm=global", "lambda_max=0.2"],
            distsam.DAS,
            {"alpha": 0.7, "norm": "global", "lambda_max": 0.2},
        ),
        (["method=nbar", "alpha=0.6"], distsam.BAR, {"alpha": 0.6, "rule": "nbar"}),
        (["method=obar", "alpha=0.6"], distsam.BAR, {"alpha": 0.6, "rule": "obar"}),
    ],
)
def test_keys_of_a_method_reach_it(
    tmp_path: Path, overrides: list[str], kind: type, attributes: dict[str, object]
) -> None:
    optimizer = optimizer_of(tmp_path, *overrides)
    assert type(optimizer) is kind
    held = {**vars(optimizer), **optimizer.param_groups[0]}
    assert {name: held[name] for name in attributes} == attributes


def test_a_sum_nests_sam_outermost(tmp_path: Path) -> None:
    optimizer = optimizer_of(tmp_path, "method=sam+das", "alpha=0.7", "rho=0.3")
    assert [type(wrapper).__name__ for wrapper in optimizer.chain()] == ["SAM", "DAS"]


@pytest.mark.parametrize(
    ("overrides", "kind", "numbers"),
    [
        (
            ["base=sgd", "lr=0.5", "momentum=0.4", "weight_decay=0.3"],
            torch.optim.SGD,
            {"lr": 0.5, "momentum": 0.4, "weight_decay": 0.3},
        ),
        (["base=adam", "lr=0.5", "weight_decay=0.3"], torch.optim.Adam, {"lr": 0.5, "weight_decay": 0.3}),
        (["base=adamw", "lr=0.5", "weight_decay=0.3"], torch.optim.AdamW, {"lr": 0.5, "weight_decay": 0.3}),
    ],
)
def test_keys_of_a_base_reach_it(tmp_path: Path, overrides: list[str], kind: type, numbers: dict[str, float]) -> None:
    base = optimizer_of(tmp_path, *overrides).base_optimizer
    assert type(base) is kind
    assert {name: base.param_groups[0][name] for name in numbers} == numbers


def test_max_skipped_reaches_the_outermost_optimizer(tmp_path: Path) -> None:
    network = distsam.TensorNetwork(distsam.cp((8, 6, 4), 2))
    for method in ("base", "sam", "das"):
        config = config_of(tmp_path, f"optim.method={method}", "optim.alpha=0.1", "optim.max_skipped=1")
        optimizer = build_optimizer(config, network)
        with pytest.raises(distsam.TrainingDiverged, match="in 1 steps in a row"):
            optimizer.step(lambda: network.dense().sum() * float("nan"))  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("override", ["data.seed=1", "data.noise=0.5"])
def test_keys_of_the_synthetic_tensor_change_it(tmp_path: Path, override: str) -> None:
    plain, other = (build_task(config_of(tmp_path, *more), Layout.alone()) for more in ([], [override]))
    assert not np.array_equal(plain.entries.values, other.entries.values)  # type: ignore[attr-defined]


@pytest.mark.parametrize("init", ["gaussian", "data"])
def test_the_seed_of_the_run_draws_the_start(tmp_path: Path, init: str) -> None:
    def start(*overrides: str) -> Any:
        # A ring: its decomposition draws; the split must not change with the seed here, so nothing is held out.
        ring = ["network.format=tr", f"network.init={init}", "data.observed=1", "data.validation=0"]
        config = config_of(tmp_path, *ring, *overrides)
        return list(build_model(config, build_task(config, Layout.alone())).parameters())

    first, again, other = start(), start(), start("run.seed=1")
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_norms_and_std_of_the_start_are_those_asked_for(tmp_path: Path) -> None:
    def start(*overrides: str) -> distsam.TensorNetwork:
        config = config_of(tmp_path, "network.dtype=float64", *overrides)
        return build_model(config, build_task(config, Layout.alone()))  # type: ignore[return-value]

    def rms(network: distsam.TensorNetwork) -> float:
        return float(network.dense().detach().square().mean().sqrt())

    norms = [float(core.detach().norm()) for core in start("network.init_norms=[1,2,4]").cores]
    assert [norm / norms[0] for norm in norms] == pytest.approx([1, 2, 4], rel=1e-12)
    assert rms(start("network.init_std=0.3")) == pytest.approx(0.3, rel=1e-12)
    assert rms(start()) == pytest.approx(1, rel=1e-12)  # of standardised values
    config = config_of(tmp_path)
    task: Any = build_task(config, Layout.alone())
    spread = float(task.entries.values[task.split.train].std())
    assert spread != pytest.approx(1, rel=0.01)
    assert rms(start("data.standardise=false")) == pytest.approx(spread, rel=1e-12)
