"""The named formats: each function turns a shape and bond sizes into a NetworkSpec."""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from distsam.errors import InputError
from distsam.tensornet.arguments import checked_list, checked_size, is_list
from distsam.tensornet.spec import NetworkSpec


def cp(shape: Sequence[int], bond_dim: int) -> NetworkSpec:
    """CP: factors (I_k, r), all joined by one bond "r" that every core carries.

    Args:
        shape: I_0..I_{d-1}, at least two modes.
        bond_dim: r, at most the product of all modes but the largest.

    Raises:
        InputError: a size is no integer of at least 1, or the bond is larger than the tensor allows.
    """
    shape = checked_list(shape, "shape")
    sizes = _mode_sizes(shape)
    sizes["r"] = checked_size(bond_dim, "bond_dim")
    modes = _mode_names(shape)
    return _spec("cp", [(mode, "r") for mode in modes], modes, sizes, _names("factor", modes))


def tucker(shape: Sequence[int], ranks: Sequence[int]) -> NetworkSpec:
    """Tucker: the central core (r_0..r_{d-1}) first, then the factors (I_k, r_k).

    Args:
        shape: I_0..I_{d-1}, at least two modes.
        ranks: r_0..r_{d-1}; each at most its mode and at most the product of the other ranks.

    Raises:
        InputError: a size is no integer of at least 1, or a rank is larger than the tensor allows.
    """
    shape = checked_list(shape, "shape")
    sizes = _mode_sizes(shape)
    ranks = _size_list(ranks, "ranks", len(shape))
    modes = _mode_names(shape)
    bonds = tuple(f"r{k}" for k in range(len(shape)))
    sizes.update(zip(bonds, ranks, strict=True))
    cores = [bonds, *zip(modes, bonds, strict=True)]
    return _spec("tucker", cores, modes, sizes, ("central", *_names("factor", modes)))


def tt(shape: Sequence[int], bond_dim: int | Sequence[int]) -> NetworkSpec:
    """Tensor train without dummy bonds: (I_0, b_1), (b_1, I_1, b_2), ..., (b_{d-1}, I_{d-1}).

    Args:
        shape: I_0..I_{d-1}, at least two modes.
        bond_dim: one size for all d - 1 bonds, or their list (b_1..b_{d-1}).

    Raises:
        InputError: a size is no integer of at least 1, or a bond is larger than the tensor allows.
    """
    shape = checked_list(shape, "shape")
    sizes = _mode_sizes(shape)
    modes = _mode_names(shape)
    bonds = tuple(f"b{k}" for k in range(1, len(shape)))
    sizes.update(zip(bonds, _size_list(bond_dim, "bond_dim", len(bonds)), strict=True))
    lefts, rights = ((), *((b,) for b in bonds)), (*((b,) for b in bonds), ())
    cores = [(*left, mode, *right) for left, mode, right in zip(lefts, modes, rights, strict=True)]
    return _spec("tt", cores, modes, sizes, _names("core", modes))


def tr(shape: Sequence[int], bond_dim: int | Sequence[int]) -> NetworkSpec:
    """Tensor ring: core k is (b_k, I_k, b_{k+1}), and the last bond is the first.

    Args:
        shape: I_0..I_{d-1}, at least two modes.
        bond_dim: one size for all d bonds, or their list (b_0..b_{d-1}).

    Raises:
        InputError: a size is no integer of at least 1, or two bonds of a core together exceed what the tensor
            allows (the product of the other modes).
    """
    shape = checked_list(shape, "shape")
    sizes = _mode_sizes(shape)
    modes = _mode_names(shape)
    bonds = tuple(f"b{k}" for k in range(len(shape)))
    sizes.update(zip(bonds, _size_list(bond_dim, "bond_dim", len(bonds)), strict=True))
    cores = list(zip(bonds, modes, (*bonds[1:], bonds[0]), strict=True))
    for left, mode, right in cores:
        largest_allowed = prod(sizes[other] for other in modes if other != mode)
        if sizes[left] * sizes[right] > largest_allowed:
            raise InputError(
                f"bond_dim: bonds {left!r} and {right!r} have sizes {sizes[left]} and {sizes[right]}, larger than "
                f"the tensor allows; their product must be at most {largest_allowed}"
            )
    return _spec("tr", cores, modes, sizes, _names("core", modes))


def einsum_network(equation: str, sizes: Mapping[str, int]) -> NetworkSpec:
    """Any network of cores, written as an einsum equation with one letter per index.

    Args:
        equation: "ir,jr,kr->ijk": the cores' indices, then the modes after "->". Letters that are missing on the
            right are bonds and summed over.
        sizes: the size of every letter.

    Raises:
        InputError: the equation cannot be read, an index stands twice in one core, a mode is in no core, sizes
            and equation disagree, or a bond is larger than the tensor allows.
    """
    if not isinstance(equation, str) or not isinstance(sizes, Mapping):
        raise InputError(
            f"equation {equation!r} and sizes {sizes!r}: give a text such as 'ir,jr,kr->ijk' and a mapping from letter "
            "to size"
        )
    left, arrow, right = equation.replace(" ", "").partition("->")
    letters = left.replace(",", "") + right
    if not arrow or not right or not letters.isalpha() or "" in left.split(","):
        raise InputError(f"equation {equation!r} cannot be read; write one letter per index, as in 'ir,jr,kr->ijk'")
    for letter, size in sizes.items():
        checked_size(size, f"sizes.{letter}")
    cores = [tuple(core) for core in left.split(",")]
    core_names = tuple(f"core_{k}" for k in range(len(cores)))
    return _spec("einsum", cores, tuple(right), dict(sizes), core_names)


def _spec(
    format: str, cores: Sequence[tuple[str, ...]], modes: tuple[str, ...], sizes: dict[str, int], names: tuple[str, ...]
) -> NetworkSpec:
    return NetworkSpec(format, tuple(cores), modes, tuple((k, int(v)) for k, v in sizes.items()), names)


def _mode_names(shape: Sequence[int]) -> tuple[str, ...]:
    return tuple(f"i{k}" for k in range(len(shape)))


def _names(kind: str, modes: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{kind}_{k}" for k in range(len(modes)))


def _mode_sizes(shape: Sequence[int]) -> dict[str, int]:
    if len(shape) < 2:
        raise InputError(f"shape {tuple(shape)} has {len(shape)} modes; a network of this format needs at least 2")
    return {f"i{k}": checked_size(size, f"mode {k} of shape {tuple(shape)}") for k, size in enumerate(shape)}


def _size_list(value: Any, key: str, length: int) -> list[int]:
    if not is_list(value):
        return [checked_size(value, key)] * length
    sizes = checked_list(value, key)
    if len(sizes) != length:
        raise InputError(f"{key} {sizes} has {len(sizes)} entries; this shape needs {length}")
    return [checked_size(size, f"{key}[{k}]") for k, size in enumerate(sizes)]
