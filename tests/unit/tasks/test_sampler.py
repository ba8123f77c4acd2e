import numpy as np
import pytest
import torch

from distsam.errors import ArgumentError
from distsam.tasks.sampler import Sampler, batch_positions, nth_part
from distsam.tasks.task import TaskContext


def test_every_epoch_meets_every_entry_once_also_when_batches_cross_its_end():
    batches = [batch_positions(step, num_examples=10, batch_size=4, seed=0) for step in range(15)]
    for epoch in np.concatenate(batches).reshape(6, 10):
        assert sorted(epoch) == list(range(10))


def test_epochs_and_seeds_are_shuffled_differently():
    first, second = (batch_positions(step, 100, 100, seed=0) for step in (0, 1))
    other = batch_positions(0, 100, 100, seed=1)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, other)
    assert not np.array_equal(second, other)  # seed and epoch are not added up


def test_a_batch_does_not_depend_on_which_steps_were_asked_for_before():
    forward = [batch_positions(step, 10, 4, seed=7) for step in range(8)]
    backward = [batch_positions(step, 10, 4, seed=7) for step in reversed(range(8))]
    assert all(np.array_equal(a, b) for a, b in zip(forward, reversed(backward), strict=True))


def test_changing_a_batch_does_not_change_later_ones():
    expected = batch_positions(0, 10, 10, seed=0).copy()
    batch_positions(0, 10, 10, seed=0)[:] = 0
    assert np.array_equal(batch_positions(0, 10, 10, seed=0), expected)


@pytest.mark.parametrize(("count", "world_size"), [(10, 1), (10, 4), (3, 4), (0, 2), (7, 7)])
def test_parts_join_to_the_batch_and_are_even(count, world_size):
    positions = np.arange(count)
    slices = [nth_part(positions, rank, world_size) for rank in range(world_size)]
    assert np.array_equal(np.concatenate(slices), positions)
    assert max(map(len, slices)) - min(map(len, slices)) <= 1


def test_more_pieces_than_a_rank_has_examples_are_refused() -> None:
    """Of 8,000 pieces of 7,805 entries 195 were empty, and every step ran through them."""
    context = TaskContext(
        seed=0,
        data_rank=0,
        data_size=2,
        device=torch.device("cpu"),
        dtype=torch.float32,
        sum_over_ranks=lambda tensor: tensor,
    )
    Sampler(10, None, context).pieces(0, 5)
    with pytest.raises(ArgumentError, match="accumulate: 6 is more than the 5 examples of a rank"):
        Sampler(10, None, context).pieces(0, 6)
