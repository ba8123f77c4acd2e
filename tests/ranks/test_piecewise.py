"""Torch's optimizers step on pieces of parameters to the same bits as on DTensors."""

import pytest
from piecewise_cases import (
    compare_with_steps_on_dtensors,
    step_that_raises,
    step_with_a_global_hook,
    step_with_a_hook,
)
from rank_pool import RankPool

from distsam.optim.piecewise import ELEMENTWISE


@pytest.mark.parametrize("name", sorted(kind.__name__ for kind in ELEMENTWISE))
def test_an_optimizer_steps_on_pieces_as_on_dtensors(two_ranks: RankPool, name: str) -> None:
    """The model has a whole bias beside its shards: multi-tensor kernels refused the mixture."""
    assert two_ranks.run(compare_with_steps_on_dtensors, name) == [(True, True, True)] * 2


def test_a_hook_finds_the_users_parameters(two_ranks: RankPool) -> None:
    assert two_ranks.run(step_with_a_hook) == [[True]] * 2
    assert two_ranks.run(step_with_a_global_hook) == [[True]] * 2


def test_what_a_step_that_raises_has_made_is_kept(two_ranks: RankPool) -> None:
    """The weights had moved, and the first moments of that step were lost."""
    for with_state, all_of_them in two_ranks.run(step_that_raises):
        assert with_state == all_of_them
