"""What is a tensor network? Specs, formats, contraction, entries, start values, decompositions."""

from distsam.tensornet.formats import cp, einsum_network, tr, tt, tucker
from distsam.tensornet.network import CoreNetwork, TensorNetwork, core_networks
from distsam.tensornet.spec import NetworkSpec

__all__ = [
    "CoreNetwork",
    "NetworkSpec",
    "TensorNetwork",
    "core_networks",
    "cp",
    "einsum_network",
    "tr",
    "tt",
    "tucker",
]
