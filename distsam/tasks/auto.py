"""The rule behind "auto": sizes, learning rate and weight decay of a completion, from the entries that are known."""

from collections.abc import Callable, Sequence
from math import prod

from distsam.errors import ArgumentError
from distsam.tensornet import NetworkSpec

# MEASURED
LARGE, BATCH = 50_000, 8192
LEARNING_RATE = 0.03
LARGEST_BOND = 60
PARAMETERS_PER_VALUE = 2.0


def bond_for(spec_of: Callable[[int], NetworkSpec], num_values: int) -> int:
    """The largest bond, up to LARGEST_BOND, whose network has at most PARAMETERS_PER_VALUE parameters a training value.

    Args:
        spec_of: bond -> the network; raises ArgumentError where the tensor allows no such bond.
        num_values: number of training entries.

    Returns:
        At least 1, also where that has more parameters.
    """
    best = 1
    for bond in range(2, LARGEST_BOND + 1):
        try:
            spec = spec_of(bond)
        except ArgumentError:
            break
        if spec.num_parameters > PARAMETERS_PER_VALUE * num_values:
            break
        best = bond
    return best


def tucker_ranks(shape: Sequence[int], bond: int) -> list[int]:
    """Ranks of at most `bond`, none above its mode or above the product of the others."""
    ranks = [min(size, bond) for size in shape]
    # Cutting one can make another too large for what is left.
    while (cut := [min(rank, prod(ranks) // rank) for rank in ranks]) != ranks:
        largest = max(range(len(ranks)), key=lambda k: ranks[k] - cut[k])
        ranks[largest] = cut[largest]
    return ranks


def batch_for(num_values: int) -> int | None:
    """Entries a step: all (None), or, of more than LARGE, BATCH of them: many steps in the time of a few of all.

    Measured on imputegap's traffic (731 x 24 x 20, 170,000 training entries, one thread, shared cores): 400 steps of
    8,192 entries, which visit as many as 20 steps of all, reach the held-out R2 at which training stops improving.
    """
    return None if num_values <= LARGE else BATCH
