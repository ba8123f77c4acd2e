"""What a rank holds of a network that is cut: its part of the weights, of the optimizer's state and of SAM's copy."""

from functools import cache

import pytest
from memory_cases import largest_network_bytes, measure_memory, total_bytes
from rank_pool import RankPool

# Weights, two moments of AdamW, SAM's copy of the weights; beside the gradients of the two passes.
KEPT, STEPPED = 4, 6


@cache
def alone() -> dict[str, int]:
    return measure_memory("replicate")


def assert_parts(found: dict[str, int], num_parts: int, is_gathered: bool) -> None:
    """Each rank has its part of the state, within 5 %, and beyond that the working set of one layer."""
    part, network = 1.05 * total_bytes() / num_parts, largest_network_bytes()
    assert found["start"] <= part
    assert found["kept"] <= KEPT * part
    # The start is drawn in float64: of one network the small cores, which say how large its tensor is.
    assert found["start_peak"] <= part + 2 * network
    # What is computed with, as in one process; FSDP2 has the weights of a network, their gradient, and the message of
    # each besides.
    working = alone()["step_peak"] - STEPPED * total_bytes() + (4 * network if is_gathered else 0)
    assert found["step_peak"] <= STEPPED * part + working


@pytest.mark.parametrize("plan", ["fsdp", "bond"])
def test_each_of_two_ranks_holds_half(two_ranks: RankPool, plan: str) -> None:
    for found in two_ranks.run(measure_memory, plan):
        assert_parts(found, 2, plan == "fsdp")


@pytest.mark.parametrize("plan", ["fsdp", "bond", "fsdp+bond"])
def test_each_of_four_ranks_holds_a_quarter(four_ranks: RankPool, plan: str) -> None:
    for found in four_ranks.run(measure_memory, plan):
        assert_parts(found, 4, "fsdp" in plan)


def test_copies_hold_everything(two_ranks: RankPool) -> None:
    for found in two_ranks.run(measure_memory, "replicate"):
        assert found["kept"] >= KEPT * total_bytes() > KEPT * 1.05 * total_bytes() / 2
