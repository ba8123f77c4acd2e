"""The rows of one huge mode divided over the ranks, and with them the data: look-ups stay where the rows are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from distsam.errors import ArgumentError
from distsam.sharding.plan import Axes, NetworkWeights, Plan, ShardPlan, chunk
from distsam.sharding.plans.replicate import Replicate


@dataclass(frozen=True)
class Mode:
    """The core that carries one mode cut into ranges of rows; each rank sees the data of its own rows, and only the
    gradients of the other cores are averaged.

    Args:
        mode: which of the tensor.
        num_ranks: that divide the rows; None takes all.
        bounds: where each rank's rows begin, and their number at the end; equal ranges when None.
        data: the plan of the remaining ranks, for which each range of rows is held several times.
    """

    mode: int = 0
    num_ranks: int | None = None
    bounds: tuple[int, ...] | None = None
    data: Plan = field(default_factory=Replicate)

    @property
    def name(self) -> str:
        """The word by which users choose it."""
        return "mode"

    @property
    def data_axes(self) -> tuple[str, ...]:
        """Those of the other plan, and the axis of rows."""
        return (*self.data.data_axes, "mode")

    def axes(self, world_size: int) -> Axes:
        """Those of the other plan, then the axis "mode".

        Raises:
            ArgumentError: these ranks do not divide the world size, or the other plan is not `replicate`.
        """
        if not isinstance(self.data, Replicate):
            raise ArgumentError(
                "plan", f"{self.data.name}+mode: beside mode the ranks hold copies; leave {self.data.name} out"
            )
        num = world_size if self.num_ranks is None else self.num_ranks
        fitting = [n for n in range(2, world_size + 1) if world_size % n == 0]
        if num not in fitting and world_size > 1:
            sizes = ", ".join(map(str, fitting))
            raise ArgumentError(
                "mode_ranks", f"{num} ranks cannot share the rows in a world of {world_size}; use one of {sizes}"
            )
        num = min(num, world_size)
        return (*self.data.axes(world_size // num), ("mode", num))

    def place(
        self, named_shapes: Mapping[str, Sequence[int]], axes: Axes, networks: Sequence[NetworkWeights] = ()
    ) -> ShardPlan:
        """Cuts the one core that carries the mode, along it.

        Raises:
            ArgumentError: there is not one network, no such mode, or several cores carry it.
        """
        name, dim = self.core(networks)
        whole = self.data.place(named_shapes, axes[:-1])
        placements = tuple((n, (*dims, dim if n == name else None)) for n, dims in whole.placements)
        size, num_ranks = named_shapes[name][dim], axes[-1][1]
        bounds = self.bounds or (0, *(chunk(size, num_ranks, rank)[1] for rank in range(num_ranks)))
        made = ShardPlan(self.name, axes, self.data_axes, whole.shapes, placements)
        return replace(made, routed=(axes[-1][0], bounds))

    def core(self, networks: Sequence[NetworkWeights]) -> tuple[str, int]:
        """The parameter that carries the mode, and the dim that is the mode.

        Raises:
            ArgumentError: as `place`.
        """
        if len(networks) != 1:
            problem = f"mode: the model has {len(networks)} networks that can be cut; it divides the rows of one alone"
            raise ArgumentError("plan", problem)
        [network] = networks
        spec = network.spec
        if not 0 <= self.mode < len(spec.modes):
            raise ArgumentError("mode", f"{self.mode}: the tensor has modes 0 to {len(spec.modes) - 1}")
        index = spec.modes[self.mode]
        carriers = spec.carriers[index]
        if len(carriers) != 1:
            names = " and ".join(spec.core_names[k] for k in carriers)
            raise ArgumentError("mode", f"{self.mode}: {names} carry it; its rows can be divided where one core does")
        return network.parameters[carriers[0]], spec.cores[carriers[0]].index(index)
