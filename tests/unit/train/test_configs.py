"""Every file in configs/ is a run that can start."""

from pathlib import Path

import pytest
import torch
from shipped import CONFIGS, load_shipped

from distsam.sharding import Fsdp, Layout
from distsam.train.build import build_parts, build_task
from distsam.train.settled import settled


def test_the_promised_configs_are_there() -> None:
    names = {path.stem for path in CONFIGS}
    assert names >= {"quickstart", "covid_base", "covid_sam", "covid_das", "covid_nbar", "toy_tucker2"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_loads_builds_and_plans(path: Path, tmp_path: Path) -> None:
    config = load_shipped(path, tmp_path)
    layout = Layout.alone()
    task = build_task(config, layout)
    run = build_parts(settled(config, task), task, layout)
    shapes = {name: tuple(p.shape) for name, p in run.model.named_parameters()}
    assert Fsdp().place(shapes, (("shard", 2),)).mesh_shape == (2,)
    [batch] = run.task.microbatches(0, 1)
    assert torch.isfinite(run.engine.step([lambda: run.task.loss(run.model, batch)]))
