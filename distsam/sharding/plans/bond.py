"""Cores cut along bonds, and contracted piece by piece: for networks that no rank holds whole, not even for a pass."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

from distsam.errors import ArgumentError
from distsam.sharding.plan import Axes, NetworkWeights, Plan, ShardPlan
from distsam.sharding.plans.replicate import Replicate
from distsam.tensornet import NetworkSpec

# A core that belongs to no pair stays whole where that adds less than this part to what a rank holds of the network.
_NEGLIGIBLE = 0.05


@dataclass(frozen=True)
class Bond:
    """Every second bond of each network cut over the ranks of an axis, so that each core is cut once; all else, and the
    rest of the ranks, as another plan has it.

    The ranks of the axis see the same data. Two cores on a cut bond meet without communication, and their product is
    added up over the axis, forward; backward the gradient of what they were multiplied with is.

    Args:
        num_ranks: along the axis; None takes all.
        data: the plan of the data axes.
    """

    num_ranks: int | None = None
    data: Plan = field(default_factory=Replicate)

    @property
    def name(self) -> str:
        """The words by which users choose it."""
        return "bond" if isinstance(self.data, Replicate) else f"{self.data.name}+bond"

    @property
    def data_axes(self) -> tuple[str, ...]:
        """Those of the other plan."""
        return self.data.data_axes

    def axes(self, world_size: int) -> Axes:
        """Those of the other plan, then the axis "bond": its ranks talk most, and neighbours in number are near.

        Raises:
            ArgumentError: these ranks do not divide the world size, or an axis would have one rank.
        """
        if world_size == 1:
            return (*self.data.axes(1), ("bond", 1))
        num = world_size if self.num_ranks is None else self.num_ranks
        fitting = [n for n in range(2, world_size + 1) if world_size % n == 0]
        if num not in fitting:
            sizes = ", ".join(map(str, fitting))
            problem = f"{num} ranks cannot share the bonds in a world of {world_size}; use one of {sizes}"
            raise ArgumentError("bond_ranks", problem)
        if num == world_size and not isinstance(self.data, Replicate):
            problem = f"{num} ranks on bonds leave none for {self.data.name} in a world of {world_size}; use plan bond"
            raise ArgumentError("bond_ranks", problem)
        return (*self.data.axes(world_size // num), ("bond", num))

    def place(
        self, named_shapes: Mapping[str, Sequence[int]], axes: Axes, networks: Sequence[NetworkWeights] = ()
    ) -> ShardPlan:
        """The cuts along bonds from the networks' specs, then those of the other plan along other dims.

        Raises:
            ArgumentError: no network has a bond of 2 or more, or the other plan can serve nothing.
        """
        dims = self._dims(networks, axes[-1][1])
        if not dims and axes[-1][1] > 1:
            problem = "bond: no network here has a bond of size 2 or more that can be cut; use replicate or fsdp"
            raise ArgumentError("plan", problem)
        # What is cut already must not be cut again: for the other plan that dim has one element.
        left = {
            name: tuple(1 if dim == dims.get(name) else size for dim, size in enumerate(shape))
            for name, shape in named_shapes.items()
        }
        whole = (None,) * (len(axes) - 1)
        other: dict[str, tuple[int | None, ...]] = dict.fromkeys(named_shapes, whole)
        routed = None
        if prod(size for _, size in axes[:-1]) > 1:
            placed = self.data.place(left, axes[:-1], networks)
            other, routed = dict(placed.placements), placed.routed
        shapes = tuple((name, tuple(shape)) for name, shape in named_shapes.items())
        placements = tuple((name, (*other[name], dims.get(name))) for name in named_shapes)
        return ShardPlan(self.name, axes, self.data_axes, shapes, placements, routed)

    def _dims(self, networks: Sequence[NetworkWeights], num_ranks: int) -> dict[str, int]:
        found = {}
        for network in networks:
            cuts = bonds_to_cut(network.spec, num_ranks)
            for name, core, bond in zip(network.parameters, network.spec.cores, cuts, strict=True):
                if bond is not None:
                    found[name] = core.index(bond)
        return found


def bonds_to_cut(spec: NetworkSpec, num_ranks: int) -> tuple[str | None, ...]:
    """For every core the bond along which it is cut, or None.

    Bonds that share no core are chosen, such that the cores on them have as many elements as possible: every second one
    of a train, the one bond of CP, the widest of Tucker. A core on none of them is cut along its own widest bond.
    """
    bonds = [bond for bond in spec.bonds if spec.size(bond) > 1]
    elements = [prod(shape) for shape in spec.core_shapes]

    def weight(bond: str) -> int:
        return sum(elements[k] for k in spec.carriers[bond])

    orders = (bonds, bonds[1:], sorted(bonds, key=weight, reverse=True))
    chosen = max((_disjoint(spec, order) for order in orders), key=lambda some: sum(map(weight, some)))
    cuts: list[str | None] = [None] * spec.num_cores
    for bond in chosen:
        for k in spec.carriers[bond]:
            cuts[k] = bond
    for k, core in enumerate(spec.cores):
        own = [bond for bond in core if bond in bonds]
        if cuts[k] is None and own and elements[k] * num_ranks > _NEGLIGIBLE * sum(elements):
            cuts[k] = max(own, key=spec.size)
    return tuple(cuts)


def _disjoint(spec: NetworkSpec, bonds: Sequence[str]) -> list[str]:
    taken: set[int] = set()
    chosen = []
    for bond in bonds:
        if taken.isdisjoint(spec.carriers[bond]):
            taken.update(spec.carriers[bond])
            chosen.append(bond)
    return chosen
