"""What is a tensor network? Specs, formats, contraction, entries, start values, decompositions."""

from distsam.tensornet.formats import cp, einsum_network, tr, tt, tucker
from distsam.tensornet.network import TensorNetwork
from distsam.tensornet.networks import CoreNetwork, NetworkModule, as_network, core_networks
from distsam.tensornet.spec import NetworkSpec

__all__ = [
    "CoreNetwork",
    "NetworkModule",
    "NetworkSpec",
    "TensorNetwork",
    "as_network",
    "core_networks",
    "cp",
    "einsum_network",
    "tr",
    "tt",
    "tucker",
]
