"""The plans that are worth to be priced for a model and a number of ranks, the simplest first."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from distsam.sharding.plan import NetworkWeights, Plan
from distsam.sharding.plans import Bond, Fsdp, Mode, Replicate

# A core must hold so much of all parameters that only its rows need be divided.
MOST = 0.5


@dataclass(frozen=True)
class Candidate:
    """A plan that may be taken.

    Args:
        kind: the words by which users choose it.
        plan: with its numbers of ranks.
        keys: these numbers, by the words by which users give them.
        mode: index of the mode whose rows are divided, or None.
    """

    kind: str
    plan: Plan
    keys: tuple[tuple[str, int], ...] = ()
    mode: str | None = None


def candidates(
    shapes: Mapping[str, Sequence[int]], networks: Sequence[NetworkWeights], is_routable: bool, world_size: int
) -> Iterator[Candidate]:
    """Copies, then FSDP2's pieces in several replicas, bonds, rows, and sums of them.

    Args:
        shapes: parameter -> full shape.
        networks: those that can be contracted in pieces.
        is_routable: data can go to the ranks that hold their rows.
        world_size: number of ranks; for one there is nothing to cut.
    """
    yield Candidate("replicate", Replicate())
    divisors = [n for n in range(2, world_size + 1) if world_size % n == 0]
    for num in reversed(divisors):
        replicas = world_size // num
        yield Candidate("fsdp", Fsdp(replicas), (("replicas", replicas),))
    bonds = [n for n in divisors if n <= _widest_bond(networks)]
    for num in bonds:
        yield Candidate("bond", Bond(num), (("bond_ranks", num),))
    yield from _of_rows(shapes, networks if is_routable else (), divisors, bonds, world_size)
    for num in bonds:
        if num < world_size:
            yield Candidate("fsdp+bond", Bond(num, Fsdp()), (("bond_ranks", num),))


def _of_rows(
    shapes: Mapping[str, Sequence[int]],
    networks: Sequence[NetworkWeights],
    divisors: Sequence[int],
    bonds: Sequence[int],
    world_size: int,
) -> Iterator[Candidate]:
    place = _largest_mode(shapes, networks)
    if place is None or not divisors:
        return
    mode = networks[0].spec.modes[place]
    yield Candidate("mode", Mode(place), (("mode", place),), mode)
    for num in bonds:
        if num < world_size:
            yield Candidate("mode+bond", Bond(num, Mode(place)), (("bond_ranks", num), ("mode", place)), mode)


def _largest_mode(shapes: Mapping[str, Sequence[int]], networks: Sequence[NetworkWeights]) -> int | None:
    """The place of the largest mode of the one network, if its one core holds most of all parameters."""
    if len(networks) != 1:
        return None
    [network] = networks
    spec = network.spec
    place = max(range(len(spec.modes)), key=lambda k: spec.shape[k])
    carriers = spec.carriers[spec.modes[place]]
    if len(carriers) != 1:
        return None
    of_core = prod(spec.core_shapes[carriers[0]])
    return place if of_core > MOST * sum(prod(shape) for shape in shapes.values()) else None


def _widest_bond(networks: Sequence[NetworkWeights]) -> int:
    return max((network.spec.size(bond) for network in networks for bond in network.spec.bonds), default=1)
