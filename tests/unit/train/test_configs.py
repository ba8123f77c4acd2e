"""Every file in configs/ is a run that can start."""

from pathlib import Path

import numpy as np
import pytest
import torch

from distsam.sharding import World, plan_shards
from distsam.train.build import build_job, build_problem
from distsam.train.config_file import load_config

CONFIGS = sorted((Path(__file__).parents[3] / "configs").glob("*.yaml"))


def test_the_promised_configs_are_there() -> None:
    names = {path.stem for path in CONFIGS}
    assert names >= {"quickstart", "covid_base", "covid_sam", "covid_das", "covid_nbar", "toy_tucker2"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_loads_builds_and_plans(path: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "mine.npy", np.random.default_rng(0).normal(size=(8, 4, 6)))
    config = load_config(path, [f"data.path={tmp_path}/mine.npy"] if path.stem == "file" else [])
    job = build_job(config, build_problem(config), World(0, 1, 0, torch.device("cpu")))
    shapes = {name: tuple(p.shape) for name, p in job.model.named_parameters()}
    assert plan_shards(shapes, "fsdp", (2,)).num_shards == 2
    assert torch.isfinite(job.engine.step(lambda: job.task.loss(job.model, job.task.microbatches(0, 1)[0])))
