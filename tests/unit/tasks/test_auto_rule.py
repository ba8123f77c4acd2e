"""The rule behind auto: how large a network, and how much decay."""

from functools import partial
from math import prod

import numpy as np
import pytest

import distsam
from distsam.tasks.auto import LARGEST_BOND, PARAMETERS_PER_VALUE, bond_for, tucker_ranks
from distsam.tasks.pilot import FACTOR, FIRST, LAST, choose_decay

SHAPE = (20, 15, 10)


def test_the_bond_is_as_large_as_the_number_of_values_allows() -> None:
    cp = partial(distsam.cp, SHAPE)
    # 45 parameters a bond
    assert bond_for(cp, 10**6) == LARGEST_BOND
    assert bond_for(cp, 300) == PARAMETERS_PER_VALUE * 300 // 45
    assert bond_for(cp, 1) == 1


def test_the_bond_is_one_that_the_tensor_allows() -> None:
    assert bond_for(partial(distsam.cp, (50, 3, 2)), 10**6) == 6
    assert bond_for(partial(distsam.tt, (50, 3, 2)), 10**6) == 2
    assert bond_for(partial(distsam.tr, SHAPE), 10**6) <= LARGEST_BOND


@pytest.mark.parametrize("shape", [(438, 6, 11), (100, 2, 3), (40, 5), (2, 2, 2, 200), (1, 7, 9), (50, 7, 2)])
def test_tucker_ranks_are_ranks_that_a_tensor_of_this_shape_can_have(shape: tuple[int, ...]) -> None:
    for bond in (1, 2, 8, 30):
        ranks = tucker_ranks(shape, bond)
        distsam.tucker(shape, ranks)  # raises where they are none
        assert max(ranks) <= bond
        # None could be larger than it is with the others as they are.
        for rank, size in zip(ranks, shape, strict=True):
            assert rank == min(size, bond, prod(ranks) // rank)


def decay_of(noise: float, rank: int = 2, num_values: int = 900) -> float:
    """The decay that the pilot takes for a tensor of this rank, of which so many entries are known."""
    rng = np.random.default_rng(0)
    tensor = np.einsum("ar,br,cr->abc", *(rng.normal(size=(size, rank)) for size in SHAPE))
    tensor = tensor / tensor.std() + noise * rng.normal(size=SHAPE)
    indices = rng.permutation(np.argwhere(np.ones(SHAPE)))[:num_values]
    values = tensor[tuple(indices.T)]
    return choose_decay(distsam.cp(SHAPE, 6), indices, (values - values.mean()) / values.std(), 0.03, seed=0)


def test_noise_asks_for_more_decay_than_none() -> None:
    clean, noisy = decay_of(0.01), decay_of(1.0)
    assert clean * FACTOR < noisy
    for decay in (clean, noisy):
        assert 0.9 * LAST <= decay * 900 <= 1.1 * FIRST


def test_the_decay_is_the_same_at_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distsam.tasks.pilot.STEPS", 10)
    assert decay_of(0.5) == decay_of(0.5)
