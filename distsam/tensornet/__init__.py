"""What is a tensor network? Specs, formats, contraction, entries, start values, decompositions."""

from distsam.tensornet.contractor import Contractor, Cores
from distsam.tensornet.core_network import CoreNetwork
from distsam.tensornet.formats import cp, einsum_network, tr, tt, tt_matrix, tucker
from distsam.tensornet.network import TensorNetwork, deferred_draws
from distsam.tensornet.networks import NetworkModule, as_network, core_networks, mark_network
from distsam.tensornet.spec import NetworkSpec

__all__ = [
    "Contractor",
    "CoreNetwork",
    "Cores",
    "NetworkModule",
    "NetworkSpec",
    "TensorNetwork",
    "as_network",
    "core_networks",
    "cp",
    "deferred_draws",
    "einsum_network",
    "mark_network",
    "tr",
    "tt",
    "tt_matrix",
    "tucker",
]
