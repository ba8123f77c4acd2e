"""What `distsam plan` says before a run equals what is counted in it, to the byte."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from rank_pool import RankPool
from traffic_cases import measure_second_step

from distsam.train.config_file import load_config
from distsam.train.dry_run import dry_run

SMALL = """
data: {source: lowrank, equation: "ar,br,cr->abc", sizes: {a: 16, b: 12, c: 10, r: 2}, noise: 0.1, observed: 0.6}
network: {format: tt, bond_dim: 6}
optim: {method: sam, base: adam, lr: 0.01}
train: {steps: 20, batch_size: 64}
"""
# 200,000 parameters: too many for gradients to travel with the numbers of the pass.
LARGE = """
data: {source: lowrank, equation: "ar,br,cr->abc", sizes: {a: 512, b: 16, c: 64, r: 2}, noise: 0.1, observed: 0.6}
network: {format: tt, bond_dim: [128, 64]}
optim: {method: sam, base: sgd, momentum: 0.9, lr: 0.01}
train: {steps: 20, batch_size: 64}
"""
DIGITS = Path(__file__).parents[2] / "configs" / "digits.yaml"


def predicted(path: Path, overrides: list[str], world_size: int) -> list[dict[str, Any]]:
    answers = []
    for rank in range(world_size):
        found = dry_run(load_config(path, overrides), world_size, rank)
        calls = Counter((call.kind, call.message_bytes) for call in found.collectives)
        answers.append(
            {
                "collectives": sorted((*call, number) for call, number in calls.items()),
                "weights": found.memory.cores + found.memory.other_parameters,
                "optimizer_state": found.memory.optimizer_state,
                "copies": found.memory.sam_copy,
            }
        )
    return answers


def config(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "overrides"),
    [
        (SMALL, ["sharding.plan=replicate"]),
        (SMALL, ["sharding.plan=fsdp"]),
        (SMALL, ["sharding.plan=fsdp", "train.accumulate=2", "optim.method=sam+das", "optim.alpha=0.1"]),
        (SMALL, ["sharding.plan=bond"]),
        (LARGE, ["sharding.plan=replicate"]),
        (LARGE, ["sharding.plan=fsdp", "optim.method=base"]),
    ],
)
def test_a_step_on_two_ranks_sends_and_holds_what_was_predicted(
    two_ranks: RankPool, tmp_path: Path, text: str, overrides: list[str]
) -> None:
    path, overrides = config(tmp_path, text), [*overrides, "sharding.link=loopback"]
    assert two_ranks.run(measure_second_step, str(path), overrides) == predicted(path, overrides, 2)


@pytest.mark.parametrize(
    ("text", "overrides"),
    [
        (LARGE, ["sharding.plan=replicate"]),
        (LARGE, ["sharding.plan=fsdp"]),
        (LARGE, ["sharding.plan=fsdp", "sharding.replicas=2"]),
        (LARGE, ["sharding.plan=fsdp+bond", "sharding.bond_ranks=2"]),
        # Two messages of gradients.
        (LARGE, ["sharding.plan=replicate", "train.precision=float64"]),
        (SMALL, ["sharding.plan=replicate", "sharding.reduce_dtype=bf16"]),
        (LARGE, ["sharding.plan=fsdp+bond", "sharding.bond_ranks=2", "sharding.reduce_dtype=bf16"]),
        (LARGE, ["sharding.plan=fsdp", "sharding.replicas=2", "sharding.reduce_dtype=bf16", "train.accumulate=2"]),
        # A core of 6 rows: the ranks have 2, 2, 2 and none of them.
        (SMALL, ["sharding.plan=fsdp"]),
    ],
)
def test_a_step_on_four_ranks_sends_and_holds_what_was_predicted(
    four_ranks: RankPool, tmp_path: Path, text: str, overrides: list[str]
) -> None:
    path, overrides = config(tmp_path, text), [*overrides, "sharding.link=loopback"]
    assert four_ranks.run(measure_second_step, str(path), overrides) == predicted(path, overrides, 4)


def test_a_step_of_a_classifier_on_two_ranks_sends_and_holds_what_was_predicted(two_ranks: RankPool) -> None:
    overrides = ["sharding.plan=fsdp"]
    assert two_ranks.run(measure_second_step, str(DIGITS), overrides) == predicted(DIGITS, overrides, 2)
