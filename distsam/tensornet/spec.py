"""What a tensor network is before it has numbers: indices, their sizes, and which core carries which."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING

from distsam.errors import ArgumentError
from distsam.tensornet.arguments import checked_size

if TYPE_CHECKING:
    import torch

    from distsam.tensornet.description import Evaluation


@dataclass(frozen=True)
class NetworkSpec:
    """A tensor network without arrays: T[modes] = sum over the bonds of the product of all cores.

    A mode is an index of the full tensor, a bond any other index. An index may be carried by any number of cores
    (CP's bond is carried by all), but never twice by one core: T must stay linear in every core.

    Args:
        format: what reports call this kind of network: "cp", "tt", ...
        cores: per core the names of its indices, in the order of its dims.
        modes: the names of the modes, in the order of the full tensor's dims.
        sizes: (index, size) for every index; the order carries no meaning.
        core_names: one readable name per core, no name twice; parameters are named by position ("cores.0") anyway.

    Raises:
        ArgumentError: the indices contradict each other, a size is below 1, or a bond is larger than it can use.
    """

    format: str
    cores: tuple[tuple[str, ...], ...]
    modes: tuple[str, ...]
    sizes: tuple[tuple[str, int], ...]
    core_names: tuple[str, ...]

    def __post_init__(self) -> None:
        _check_names(self)
        _check_sizes(self)
        for bond in self.bonds:
            _check_bond(self, bond)

    @cached_property
    def _size_of(self) -> dict[str, int]:
        return dict(self.sizes)

    def size(self, index: str) -> int:
        """Size of one mode or bond."""
        return self._size_of[index]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the full tensor."""
        return tuple(self.size(mode) for mode in self.modes)

    @property
    def order(self) -> int:
        """Number of modes."""
        return len(self.modes)

    @property
    def num_cores(self) -> int:
        """Number of cores, K."""
        return len(self.cores)

    @property
    def core_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shape of every core."""
        return tuple(tuple(self.size(index) for index in core) for core in self.cores)

    @cached_property
    def bonds(self) -> tuple[str, ...]:
        """Every index that is no mode, in order of first appearance."""
        seen = dict.fromkeys(index for core in self.cores for index in core)
        modes = set(self.modes)
        return tuple(index for index in seen if index not in modes)

    @cached_property
    def carriers(self) -> dict[str, tuple[int, ...]]:
        """Index -> the cores that carry it."""
        found: dict[str, list[int]] = {}
        for k, core in enumerate(self.cores):
            for index in core:
                found.setdefault(index, []).append(k)
        return {index: tuple(cores) for index, cores in found.items()}

    @cached_property
    def place_of_mode(self) -> dict[str, int]:
        """Mode -> its place in the shape."""
        return {mode: place for place, mode in enumerate(self.modes)}

    @cached_property
    def place_of_bond(self) -> dict[str, int]:
        """Bond -> its place among the bonds."""
        return {bond: place for place, bond in enumerate(self.bonds)}

    @property
    def num_parameters(self) -> int:
        """Number of elements of all cores together."""
        return sum(prod(shape) for shape in self.core_shapes)

    def plan(
        self,
        batch_size: int,
        vectors_over: Sequence[str] = (),
        *,
        max_peak_bytes: int | None = None,
        dtype: "torch.dtype | None" = None,
    ) -> "Evaluation":
        """How this network is evaluated for a batch: `print(spec.plan(100_000).describe())`.

        It is the plan of `TensorNetwork.at` and, with `vectors_over`, of a layer; nothing is computed.

        Args:
            batch_size: number of entries, or of vectors.
            vectors_over: modes of the vectors that the network is multiplied with; none: entries.
            max_peak_bytes: as of `TensorNetwork`.
            dtype: of the cores; float32 when None.

        Raises:
            ArgumentError: another mode, a batch below 1, or no plan stays below the ceiling.
        """
        import torch

        from distsam.tensornet.description import plan_evaluation  # which needs this class

        return plan_evaluation(self, batch_size, vectors_over, max_peak_bytes, dtype or torch.float32)


def _check_names(spec: NetworkSpec) -> None:
    for argument in ("cores", "modes"):
        if not getattr(spec, argument):
            raise ArgumentError(argument, "is empty; a network needs at least one")
    if len(spec.core_names) != spec.num_cores:
        raise ArgumentError("core_names", f"{spec.core_names} for {spec.num_cores} cores; give as many names as cores")
    _check_unique(spec.core_names, "core_names", "name", "give every core its own name")
    for name, core in zip(spec.core_names, spec.cores, strict=True):
        if not core:
            raise ArgumentError("cores", f"core {name!r} carries no index; a core needs at least one")
        _check_unique(core, "cores", f"core {name!r}: index", "an index may stand only once in a core")
        for index in core:
            # The planner adds indices of its own: "*" for the batch, "b'" for a bond's second copy.
            if not index.isidentifier():
                problem = f"index {index!r} of core {name!r} is no name; use letters, digits and underscores"
                raise ArgumentError("cores", problem)
    _check_unique(spec.modes, "modes", "mode", "every mode may stand only once")
    carried = {index for core in spec.cores for index in core}
    for mode in spec.modes:
        if mode not in carried:
            raise ArgumentError("modes", f"mode {mode!r} is carried by no core; every mode needs a core")


def _check_unique(names: Iterable[str], argument: str, what: str, rule: str) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise ArgumentError(argument, f"{what} {name!r} stands {count} times; {rule}")


def _check_sizes(spec: NetworkSpec) -> None:
    _check_unique((index for index, _ in spec.sizes), "sizes", "index", "give every size once")
    carried = {index for core in spec.cores for index in core}
    for index in sorted(carried.symmetric_difference(spec._size_of)):
        problem = "has no size" if index in carried else "has a size but is carried by no core"
        raise ArgumentError("sizes", f"index {index!r} {problem}; give those of {', '.join(sorted(carried))}")
    for index, size in spec.sizes:
        checked_size(size, f"sizes[{index}]")


def _check_bond(spec: NetworkSpec, bond: str) -> None:
    # The bond cuts the carriers apart: unfolded at any one of them, T has no more rank than the others offer.
    carriers = [spec.cores[k] for k in spec.carriers[bond]]
    others = [prod(spec.size(index) for index in core if index != bond) for core in carriers]
    largest_allowed = prod(others) // max(others)
    if spec.size(bond) > largest_allowed:
        raise ArgumentError(
            "sizes",
            f"bond {bond!r} has size {spec.size(bond)}, larger than the tensor allows; "
            f"it must be at most {largest_allowed}",
        )
