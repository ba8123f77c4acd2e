"""What runs on every rank to solve for the cores from entries that lie on several."""

import numpy as np
import torch
from collective_count import CollectiveCount

import distsam
from distsam.optim import ALS
from distsam.sharding.collectives import rank, world_size

SPECS = {
    "cp": distsam.cp((9, 6, 5), 3),
    "tucker": distsam.tucker((9, 6, 5), (3, 2, 3)),
    "tt": distsam.tt((9, 6, 5), 3),
    "tr": distsam.tr((9, 6, 5), 2),
}
NUM_ENTRIES = 150


def sweep(name: str, decay: float, cut: str, steps: int = 5) -> list[np.ndarray]:
    """The cores after some sweeps; `cut`: the entries in equal parts, or all on the first rank."""
    network = distsam.TensorNetwork(SPECS[name], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    als = _als(network, decay, cut)
    for _ in range(steps):
        als.step()
    return [core.detach().numpy() for core in network.cores]


def count_collectives(name: str) -> list[tuple[str, int]]:
    """The sizes of all collectives of one sweep."""
    network = distsam.TensorNetwork(SPECS[name], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    als = _als(network, 1e-3, "equal")
    with CollectiveCount() as count:
        als.step()
    return count.sizes


def _als(network: distsam.TensorNetwork, decay: float, cut: str) -> ALS:
    rng = np.random.default_rng(0)
    indices = np.stack([rng.integers(size, size=NUM_ENTRIES) for size in network.spec.shape], 1)
    values, size = rng.normal(size=NUM_ENTRIES), world_size()
    bounds = [NUM_ENTRIES * r // size for r in range(size + 1)] if cut == "equal" else [0] + [NUM_ENTRIES] * size
    own = slice(bounds[rank()], bounds[rank() + 1])
    [cores] = distsam.core_networks(network)
    known = torch.from_numpy(indices[own]), torch.from_numpy(values[own])
    return ALS(cores, *known, 1 / NUM_ENTRIES, weight_decay=decay)
