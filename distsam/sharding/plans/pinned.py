"""A plan that was made before, for one world size and one model, and is to be used as it is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distsam.errors import ArgumentError
from distsam.sharding.plan import Axes, NetworkWeights, ShardPlan
from distsam.sharding.plans.mode import Mode


@dataclass(frozen=True)
class Pinned:
    """The placements of `made`, and no others.

    Args:
        made: the plan.
        source: where it comes from, for messages: a file.
        mode: of the tensor, whose rows an axis of `made` divides; of no account where none does.
        bounds: of these rows, as the data have them; None where they are not known yet.
    """

    made: ShardPlan
    source: str
    mode: int = 0
    bounds: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        """That of the plan."""
        return self.made.name

    @property
    def data_axes(self) -> tuple[str, ...]:
        """Those of the plan."""
        return self.made.data_axes

    def axes(self, world_size: int) -> Axes:
        """Those of the plan.

        Raises:
            ArgumentError: it is made for another number of ranks.
        """
        made = self.made.num_ranks
        if made != world_size:
            ranks = f"{world_size} rank{'s' if world_size > 1 else ''}"
            raise ArgumentError(
                "plan",
                f"{self.source}: made for {made} ranks ({self.made.mesh}), and this world has {ranks}; start {made}, "
                f"use auto, or save a plan for {ranks} with distsam plan --world-size {world_size} --save",
            )
        return self.made.axes

    def place(
        self, named_shapes: Mapping[str, Sequence[int]], axes: Axes, networks: Sequence[NetworkWeights] = ()
    ) -> ShardPlan:
        """The plan itself, which also places what is frozen.

        Raises:
            ArgumentError: it is made for another model, another mode or rows of other data.
        """
        known = dict(self.made.shapes)
        for name, shape in named_shapes.items():
            if known.get(name) != tuple(shape):
                has = f"has it of shape {known[name]}" if name in known else "has it not"
                raise self._wrong(f"the model has {name} of shape {tuple(shape)}, and the plan {has}")
        if self.made.routed is not None:
            self._check_rows(self.made.routed[0], self.made.routed[1], networks)
        return self.made

    def _check_rows(self, axis: str, bounds: tuple[int, ...], networks: Sequence[NetworkWeights]) -> None:
        name, dim = Mode(self.mode).core(networks)
        place = [other for other, _ in self.made.axes].index(axis)
        cut = [(other, self.made.dims_of(other)[place]) for other in self.made.parameters_cut_by(axis)]
        if cut != [(name, dim)]:
            raise ArgumentError("mode", f"{self.mode}: is {name}'s; the plan {self.source} divides the rows of {cut}")
        if self.bounds not in (None, bounds):
            raise self._wrong("its rows are divided as other data need it")

    def _wrong(self, problem: str) -> ArgumentError:
        return ArgumentError(
            "plan",
            f"{self.source}: made for another run: {problem}; use auto, or save one anew with distsam plan --save",
        )
