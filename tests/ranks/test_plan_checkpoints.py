"""A checkpoint of any plan goes on under any other, on any number of ranks, optimizer state included."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from plan_cases import train_half, train_zoo
from rank_pool import RankPool

Place = tuple[str, int]
# Each plan once before and once after; one, two and four ranks on either side.
CHANGES: list[tuple[Place, Place]] = [
    (("bond", 4), ("fsdp", 2)),
    (("uneven", 2), ("bond", 2)),
    (("fsdp+bond", 4), ("replicate", 1)),
    (("replicate", 1), ("fsdp+bond", 4)),
    (("bond:2", 4), ("bond", 4)),
    (("replicate", 2), ("bond:2", 4)),
    (("fsdp:2", 4), ("bond", 2)),
    (("bond", 2), ("fsdp:2", 4)),
]


@cache
def alone() -> dict[str, np.ndarray]:
    return train_zoo("replicate", "sam+das", "float64")


@pytest.fixture
def train(two_ranks: RankPool, four_ranks: RankPool) -> Callable[..., list[dict[str, np.ndarray]]]:
    def on(place: Place, *args: object) -> list[dict[str, np.ndarray]]:
        plan, num_ranks = place
        if num_ranks == 1:
            return [train_half(plan, *args)]  # type: ignore[arg-type]
        return (two_ranks if num_ranks == 2 else four_ranks).run(train_half, plan, *args)

    return on


@pytest.mark.parametrize(("before", "after"), CHANGES, ids=str)
def test_a_run_goes_on_under_another_plan_as_if_nothing_had_changed(
    train: Callable[..., list[dict[str, np.ndarray]]], tmp_path: Path, before: Place, after: Place
) -> None:
    train(before, tmp_path, False)
    scale = max(float(np.abs(value).max()) for value in alone().values())
    for got in train(after, tmp_path, True):
        for name, value in alone().items():
            assert float(np.abs(got[name] - value).max()) < 1e-12 * scale, name
