"""Every file in configs/ is a run that can start."""

from pathlib import Path

import numpy as np
import pytest
import torch

from distsam.sharding import Fsdp, Layout
from distsam.train.build import build_parts, build_task
from distsam.train.config_file import load_config

CONFIGS = sorted((Path(__file__).parents[3] / "configs").glob("*.yaml"))


def test_the_promised_configs_are_there() -> None:
    names = {path.stem for path in CONFIGS}
    assert names >= {"quickstart", "covid_base", "covid_sam", "covid_das", "covid_nbar", "toy_tucker2"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_loads_builds_and_plans(path: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "mine.npy", np.random.default_rng(0).normal(size=(8, 4, 6)))
    config = load_config(path, [f"data.path={tmp_path}/mine.npy"] if path.stem == "file" else [])
    layout = Layout.alone()
    run = build_parts(config, build_task(config, layout), layout)
    shapes = {name: tuple(p.shape) for name, p in run.model.named_parameters()}
    assert Fsdp().place(shapes, (("shard", 2),)).mesh_shape == (2,)
    [batch] = run.task.microbatches(0, 1)
    assert torch.isfinite(run.engine.step([lambda: run.task.loss(run.model, batch)]))
