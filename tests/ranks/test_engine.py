"""Micro-batches on one and two ranks: the step of one sweep, with its reductions and no more."""

import numpy as np
import pytest
import torch
from engine_cases import (
    REDUCTIONS,
    count_collectives,
    fail_in_the_second_micro_batch,
    resume_with_schedule,
    take_a_step_with_an_infinite_loss,
    train_in_pieces,
)
from rank_cases import TwoNetworks, entries, train
from rank_pool import RankPool
from test_parity import largest_difference

METHODS = ["base", "sam", "das", "sam+das"]
PLANS = ["replicate", "fsdp"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("count", [1, 2, 4])
def test_micro_batches_in_one_process_equal_one_sweep(method: str, count: int) -> None:
    expected = train("replicate", 1, "float64", method)["parameters"]
    assert largest_difference(train_in_pieces("replicate", method, count), expected) < 1e-12


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("count", [1, 2, 4])
def test_micro_batches_on_two_ranks_equal_one_sweep_of_one_process(
    two_ranks: RankPool, plan: str, method: str, count: int
) -> None:
    expected = train("replicate", 1, "float64", method)["parameters"]
    for got in two_ranks.run(train_in_pieces, plan, method, count):
        assert largest_difference(got, expected) < 1e-12


@pytest.mark.parametrize("method", ["base", "sam"])
@pytest.mark.parametrize("plan", PLANS)
def test_gradients_are_reduced_once_a_sweep(two_ranks: RankPool, plan: str, method: str) -> None:
    def reductions(count: int) -> dict[str, int]:
        (calls, _) = two_ranks.run(count_collectives, plan, method, count)
        return {name: number for name, number in calls.items() if name in REDUCTIONS}

    once, num_passes = reductions(1), 2 if method == "sam" else 1
    if plan == "replicate":
        assert sum(once.values()) == num_passes, "small gradients take loss, stop flag and count along"
    else:
        assert sum(once.values()) > num_passes  # beside what the optimizer itself sends
    assert reductions(4) == once


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("plan", PLANS)
def test_ranks_skip_and_stop_together_however_they_learn_of_it(two_ranks: RankPool, plan: str, method: str) -> None:
    for is_kept, stops, counters in two_ranks.run(take_a_step_with_an_infinite_loss, plan, method):
        assert is_kept
        assert stops == [False, True]
        assert (counters["num_steps"], counters["num_skipped"]) == (3, 1)


def clipped_reference(clip_norm: float, steps: int = 20) -> list[np.ndarray]:
    """Clipped steps of torch alone, on all entries at once."""
    model = TwoNetworks(torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    indices, values = entries(torch.float64)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(indices) - values).square().mean().backward()
        assert float(torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)) > clip_norm
        optimizer.step()
    return [p.detach().numpy() for p in model.parameters()]


@pytest.mark.parametrize("plan", PLANS)
def test_micro_batches_are_clipped_by_the_norm_of_their_sum_over_all_ranks(two_ranks: RankPool, plan: str) -> None:
    expected = clipped_reference(0.05)
    for got in (train_in_pieces(plan, "base", 2, 20, 0.05), *two_ranks.run(train_in_pieces, plan, "base", 2, 20, 0.05)):
        assert largest_difference(got, expected) < 1e-12


@pytest.mark.parametrize("plan", PLANS)
def test_a_micro_batch_that_raised_leaves_nothing_for_the_next_step(two_ranks: RankPool, plan: str) -> None:
    for after_failure, alone in two_ranks.run(fail_in_the_second_micro_batch, plan):
        assert all(np.array_equal(a, b) for a, b in zip(after_failure, alone, strict=True))


@pytest.mark.parametrize("plan", PLANS)
def test_a_run_that_loads_another_ones_state_ends_with_its_bits(two_ranks: RankPool, plan: str) -> None:
    assert two_ranks.run(resume_with_schedule, plan) == [True, True]
