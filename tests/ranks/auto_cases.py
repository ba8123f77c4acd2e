"""Models that start elsewhere on every rank, and the numbers in place of auto."""

import torch
from collective_count import CollectiveCount

import distsam
from distsam.sharding.collectives import rank
from distsam.train.auto_values import auto_values
from distsam.train.config import validate


def model_of(seed: int) -> distsam.TensorNetwork:
    return distsam.TensorNetwork(
        distsam.tt((4, 3, 5), 2), std=1.0 + seed, generator=torch.Generator().manual_seed(seed)
    )


def numbers_of_this_rank() -> tuple[dict[str, float], int]:
    """From a model that no other rank has; and how many collectives it took."""
    config = validate(
        {
            "data": {"source": "lowrank", "equation": "ar,br->ab", "sizes": {"a": 4, "b": 3, "r": 2}},
            "network": {"format": "cp", "bond_dim": 2},
            "optim": {"method": "sam+nbar", "rho": "auto", "alpha": "auto"},
            "train": {"steps": 2},
        }
    )
    with CollectiveCount() as count:
        numbers = auto_values(config, model_of(rank()))
    return numbers, sum(count.calls.values())
