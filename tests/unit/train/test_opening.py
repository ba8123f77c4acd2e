from pathlib import Path

import numpy as np
import pytest
from shipped import CONFIGS, load_shipped

from distsam.sharding import Layout
from distsam.train.build import RunParts, build_parts, build_task
from distsam.train.config import Config
from distsam.train.config_file import load_config
from distsam.train.opening import describe_run, probable_mistakes
from distsam.train.settled import settled

SMALL = """
data: {source: lowrank, equation: "ar,br->ab", sizes: {a: 10, b: 8, r: 2}, observed: 0.5, validation: 0.1}
network: {format: cp, bond_dim: 1}
optim: {method: base}
train: {steps: 3}
"""


def config_of(tmp_path: Path, *overrides: str) -> Config:
    (tmp_path / "small.yaml").write_text(SMALL)
    return load_config(tmp_path / "small.yaml", overrides)


def parts_of(config: Config) -> RunParts:
    layout = Layout.alone()
    return build_parts(config, build_task(config, layout), layout)


def test_the_first_line_says_what_will_run(tmp_path: Path) -> None:
    config = config_of(tmp_path, "optim.method=sam")
    run = parts_of(config)
    assert describe_run(run, config, 0) == (
        "cp network of 10 x 8, 18 parameters; 36 training, 4 validation, 40 held-out entries; sam on adam; "
        "plan replicate on 1 rank"
    )
    assert describe_run(run, config, 7).endswith("; resumed after step 7")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], []),
        (["network.bond_dim=3"], ["the model has 54 parameters for 36 training values and optim.weight_decay is 0"]),
        (["network.bond_dim=3", "optim.weight_decay=0.1"], []),
        # A plain run beside the others, of the same config, is no mistake.
        (["optim.rho=0.01"], []),
        (["optim.alpha=1.0"], []),
        (
            ["optim.alpha=1.0", "optim.method=sam"],
            ["optim.alpha: 1.0 is not used by optim.method=sam; it is for das, nbar, obar"],
        ),
        (["optim.alpha=1.0", "optim.rho=0.01", "optim.method=sam+das"], []),
    ],
)
def test_what_is_probably_a_mistake_is_one_line_each(tmp_path: Path, overrides: list[str], expected: list[str]) -> None:
    config = config_of(tmp_path, *overrides)
    lines = list(probable_mistakes(parts_of(config), config))
    assert len(lines) == len(expected)
    assert all(line.startswith(start) for line, start in zip(lines, expected, strict=True))
    assert not any("\n" in line for line in lines)


def test_constant_training_values_are_named(tmp_path: Path) -> None:
    np.save(tmp_path / "flat.npy", np.full((10, 8), 3.0))
    source = ["data.source=file", f"data.path={tmp_path}/flat.npy", "data.equation=null", "data.sizes=null"]
    config = config_of(tmp_path, *source)
    [line] = probable_mistakes(parts_of(config), config)
    assert line.startswith("all 36 training values are 3: there is nothing to learn")


def test_a_validation_share_without_r2_is_named(tmp_path: Path) -> None:
    config = config_of(tmp_path, "data.validation=0.025")
    run = parts_of(config)
    assert len(run.task.split.validation) == 1  # type: ignore[attr-defined]
    [line] = probable_mistakes(run, config)
    assert line.startswith("all 1 validation values are ")
    assert "the last weights are taken" in line


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_no_shipped_config_is_a_probable_mistake(path: Path, tmp_path: Path) -> None:
    config = load_shipped(path, tmp_path)
    config = settled(config, build_task(config, Layout.alone()))  # as a run does before anything else
    assert not list(probable_mistakes(parts_of(config), config))
