"""Ranks that were started with different configs or installations."""

from pathlib import Path

import pytest
import torch
from config_cases import problem_with
from rank_pool import RankPool

CONFIG = """
data: {source: lowrank, equation: "ar,br->ab", sizes: {a: 8, b: 6, r: 2}, observed: 0.6}
network: {format: cp, bond_dim: 2}
train: {steps: 20}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "run.yaml"
    file.write_text(CONFIG)
    return file


def test_ranks_with_the_same_config_send_one_digest(two_ranks: RankPool, path: Path) -> None:
    assert two_ranks.run(problem_with, path, {1: ["train.num_threads=3"]}, {}) == [("", 1)] * 2


def test_the_first_rank_with_another_config_is_named_on_every_rank(four_ranks: RankPool, path: Path) -> None:
    """Two ranks that cut the weights and two that copied them waited for each other's collectives."""
    answers = four_ranks.run(problem_with, path, {2: ["sharding.plan=fsdp"], 3: ["sharding.plan=fsdp"]}, {})
    [problem] = {problem for problem, _ in answers}
    assert problem == (
        "rank 2 differs from rank 0: sharding.plan is 'fsdp' there and 'auto' on rank 0; sharding.replicas is 1 "
        "there and absent on rank 0; start every rank with the same config, overrides and installation"
    )


def test_a_rank_with_another_version_of_torch_is_named(two_ranks: RankPool, path: Path) -> None:
    answers = two_ranks.run(problem_with, path, {}, {1: "1.2.3"})
    [problem] = {problem for problem, _ in answers}
    says = f"rank 1 differs from rank 0: the version of torch is 1.2.3 there and {torch.__version__} on rank 0; start"
    assert problem.startswith(says)
