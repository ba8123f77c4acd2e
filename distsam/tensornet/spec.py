"""What a tensor network is before it has numbers: indices, their sizes, and which core carries which."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from math import prod

from distsam.errors import InputError
from distsam.tensornet.arguments import checked_size

# The key under which a user gives the bond sizes of each format; error messages name it.
BOND_KEYS = {"cp": "bond_dim", "tucker": "ranks", "tt": "bond_dim", "tr": "bond_dim", "einsum": "sizes"}


@dataclass(frozen=True)
class NetworkSpec:
    """A tensor network without arrays: T[modes] = sum over the bonds of the product of all cores.

    A mode is an index of the full tensor, a bond any other index. An index may be carried by any number of cores
    (CP's bond is carried by all), but never twice by one core: T must stay linear in every core.

    Args:
        format: "cp", "tucker", "tt", "tr" or "einsum".
        cores: per core the names of its indices, in the order of its dims.
        modes: the names of the modes, in the order of the full tensor's dims.
        sizes: (index, size) for every index; the order carries no meaning.
        core_names: one readable name per core, all different: what is measured is published by them. Parameters are
            named by position ("cores.0") whatever stands here.

    Raises:
        InputError: the indices contradict each other, a size is below 1, or a bond is larger than it can use.
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
        return tuple(index for index in seen if index not in self.modes)

    @property
    def num_parameters(self) -> int:
        """Number of elements of all cores together."""
        return sum(prod(shape) for shape in self.core_shapes)


def _check_names(spec: NetworkSpec) -> None:
    if spec.format not in BOND_KEYS:
        raise InputError(f"format {spec.format!r} is unknown; it must be one of {', '.join(BOND_KEYS)}")
    if not spec.cores or not spec.modes:
        raise InputError(f"network with cores {spec.cores} and modes {spec.modes}: it needs at least one of each")
    if len(spec.core_names) != spec.num_cores:
        raise InputError(f"core_names {spec.core_names}: {spec.num_cores} cores need as many names")
    for name, count in Counter(spec.core_names).items():
        if count > 1:
            raise InputError(f"core_names: {name!r} stands {count} times; every core needs a name of its own")
    for name, core in zip(spec.core_names, spec.cores, strict=True):
        if not core:
            raise InputError(f"core {name!r} carries no index; a core needs at least one")
        _check_unique(core, f"core {name!r}", "an index may stand only once in a core")
        for index in core:
            # The planner adds indices of its own: "*" for the batch, "b'" for a bond's second copy.
            if not index.isidentifier():
                raise InputError(f"index {index!r} of core {name!r} is no name; use letters, digits and underscores")
    _check_unique(spec.modes, "the full tensor", "every mode may stand only once")
    carried = {index for core in spec.cores for index in core}
    for mode in spec.modes:
        if mode not in carried:
            raise InputError(f"mode {mode!r} is carried by no core; every mode needs a core")


def _check_unique(indices: Iterable[str], where: str, rule: str) -> None:
    for index, count in Counter(indices).items():
        if count > 1:
            raise InputError(f"index {index!r} stands {count} times in {where}; {rule}")


def _check_sizes(spec: NetworkSpec) -> None:
    _check_unique((index for index, _ in spec.sizes), "sizes", "give every size once")
    carried = {index for core in spec.cores for index in core}
    for index in sorted(carried.symmetric_difference(spec._size_of)):
        problem = "has no size" if index in carried else "has a size but is carried by no core"
        raise InputError(f"sizes: index {index!r} {problem}; sizes must name {', '.join(sorted(carried))}")
    for index, size in spec.sizes:
        checked_size(size, f"size of index {index!r}")


def _check_bond(spec: NetworkSpec, bond: str) -> None:
    # The bond cuts the carriers apart: unfolded at any one of them, T has no more rank than the others offer.
    others = [prod(spec.size(index) for index in core if index != bond) for core in spec.cores if bond in core]
    largest_allowed = prod(others) // max(others)
    if spec.size(bond) > largest_allowed:
        raise InputError(
            f"{BOND_KEYS[spec.format]}: bond {bond!r} has size {spec.size(bond)}, larger than the tensor allows; "
            f"it must be at most {largest_allowed}"
        )
