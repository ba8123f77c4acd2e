"""Tensorized layers on several ranks equal one process."""

import numpy as np
import pytest
from layer_cases import train_resnet
from rank_pool import RankPool


@pytest.mark.parametrize(("plan", "norm"), [("replicate", "group"), ("fsdp", "batch")])
def test_a_residual_network_of_tensor_rings_trains_as_in_one_process(two_ranks: RankPool, plan: str, norm: str) -> None:
    """One process takes the two halves as micro-batches, so that batch normalization sees what the ranks see."""
    alone = train_resnet(plan, norm)
    assert len(alone["networks"]) == 18
    for answer in two_ranks.run(train_resnet, plan, norm):
        assert answer["networks"] == alone["networks"]
        for name, value in answer["weights"].items():
            scale = max(1.0, float(np.abs(alone["weights"][name]).max()))
            assert float(np.abs(value - alone["weights"][name]).max()) < 1e-6 * scale, name
