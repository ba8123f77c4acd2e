"""The named formats: each function turns a shape and bond sizes into a NetworkSpec."""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from distsam.errors import ArgumentError, renaming
from distsam.tensornet.arguments import checked_list, checked_size, is_list
from distsam.tensornet.equation import check_sizes, read_equation
from distsam.tensornet.spec import NetworkSpec


def cp(shape: Sequence[int], bond_dim: int) -> NetworkSpec:
    """CP: factors (I_k, r), all joined by one bond "r" that every core carries.

    Args:
        shape: I_0..I_{d-1}, at least two modes.
        bond_dim: r, at most the product of all modes but the largest.

    Raises:
        ArgumentError: a size is no integer of at least 1, or the bond is larger than the tensor allows.
    """
    shape = checked_list(shape, "shape")
    sizes = _mode_sizes(shape)
    sizes["r"] = checked_size(bond_dim, "bond_dim")
    modes = _mode_names(shape)
    return _spec("cp", [(mode, "r") for mode in modes], modes, sizes, _names("factor", modes), "bond_dim")


def tucker(shape: Sequence[int], ranks: Sequence[int]) -> NetworkSpec:
    """Tucker: the central core (r_0..r_{d-1}) first, then the factors (I_k, r_k).

    Args:
        shape: I_0..I_{d-1}, at least two modes.
        ranks: r_0..r_{d-1}; each at most its mode and at most the product of the other ranks.

    Raises:
        ArgumentError: a size is no integer of at least 1, or a rank is larger than the tensor allows.
    """
    shape = checked_list(shape, "shape")
    sizes = _mode_sizes(shape)
    ranks = _size_list(ranks, "ranks", len(shape))
    modes = _mode_names(shape)
    bonds = tuple(f"r{k}" for k in range(len(shape)))
    sizes.update(zip(bonds, ranks, strict=True))
    cores = [bonds, *zip(modes, bonds, strict=True)]
    return _spec("tucker", cores, modes, sizes, ("central", *_names("factor", modes)), "ranks")


def tt(shape: Sequence[int], bond_dim: int | Sequence[int]) -> NetworkSpec:
    """Tensor train without dummy bonds: (I_0, b_1), (b_1, I_1, b_2), ..., (b_{d-1}, I_{d-1}).

    Args:
        shape: I_0..I_{d-1}, at least two modes.
        bond_dim: one size for all d - 1 bonds, or their list (b_1..b_{d-1}).

    Raises:
        ArgumentError: a size is no integer of at least 1, or a bond is larger than the tensor allows.
    """
    shape = checked_list(shape, "shape")
    sizes = _mode_sizes(shape)
    modes = _mode_names(shape)
    bonds = tuple(f"b{k}" for k in range(1, len(shape)))
    sizes.update(zip(bonds, _size_list(bond_dim, "bond_dim", len(bonds)), strict=True))
    lefts, rights = ((), *((b,) for b in bonds)), (*((b,) for b in bonds), ())
    cores = [(*left, mode, *right) for left, mode, right in zip(lefts, modes, rights, strict=True)]
    return _spec("tt", cores, modes, sizes, _names("core", modes), "bond_dim")


def tt_matrix(out_shape: Sequence[int], in_shape: Sequence[int], bond_dim: int | Sequence[int]) -> NetworkSpec:
    """Tensor train of a matrix: core k is (b_k, O_k, I_k, b_{k+1}), with a mode of each side; no dummy bonds.

    Its tensor has the modes (O_0..O_{d-1}, I_0..I_{d-1}).

    Args:
        out_shape, in_shape: O_0..O_{d-1} and I_0..I_{d-1}; at least two of each, equally many.
        bond_dim: one size for all d - 1 bonds, or their list (b_1..b_{d-1}).

    Raises:
        ArgumentError: a size is no integer of at least 1, the two differ in length, or a bond is larger than the tensor
            allows.
    """
    outs, ins = checked_list(out_shape, "out_shape"), checked_list(in_shape, "in_shape")
    if len(outs) != len(ins) or len(outs) < 2:
        problem = f"{outs} has {len(outs)} modes and in_shape {len(ins)}; give equally many, at least 2"
        raise ArgumentError("out_shape", problem)
    sizes = {f"o{k}": checked_size(size, f"out_shape[{k}]") for k, size in enumerate(outs)}
    sizes.update({f"i{k}": checked_size(size, f"in_shape[{k}]") for k, size in enumerate(ins)})
    bonds = tuple(f"b{k}" for k in range(1, len(outs)))
    modes = tuple(sizes)
    sizes.update(zip(bonds, _size_list(bond_dim, "bond_dim", len(bonds)), strict=True))
    lefts, rights = ((), *((b,) for b in bonds)), (*((b,) for b in bonds), ())
    cores = [(*lefts[k], f"o{k}", f"i{k}", *rights[k]) for k in range(len(outs))]
    names = tuple(f"core_{k}" for k in range(len(outs)))
    return _spec("tt_matrix", cores, modes, sizes, names, "bond_dim")


def tr(shape: Sequence[int], bond_dim: int | Sequence[int]) -> NetworkSpec:
    """Tensor ring: core k is (b_k, I_k, b_{k+1}), and the last bond is the first.

    Args:
        shape: I_0..I_{d-1}, at least two modes.
        bond_dim: one size for all d bonds, or their list (b_0..b_{d-1}).

    Raises:
        ArgumentError: a size is no integer of at least 1, or two bonds of a core together exceed what the tensor
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
            raise ArgumentError(
                "bond_dim",
                f"bonds {left!r} and {right!r} have sizes {sizes[left]} and {sizes[right]}, larger than "
                f"the tensor allows; their product must be at most {largest_allowed}",
            )
    return _spec("tr", cores, modes, sizes, _names("core", modes), "bond_dim")


def einsum_network(equation: str, sizes: Mapping[str, int]) -> NetworkSpec:
    """Any network of cores, written as an einsum equation with one letter per index.

    Args:
        equation: "ir,jr,kr->ijk": the cores' indices, then the modes after "->". Letters that are missing on the
            right are bonds and summed over.
        sizes: the size of every letter.

    Raises:
        ArgumentError: the equation cannot be read, an index stands twice in one core, a mode is in no core, sizes
            and equation disagree, or a bond is larger than the tensor allows.
    """
    check_sizes(equation, sizes)
    cores, modes = read_equation(equation)
    names = tuple(f"core_{k}" for k in range(len(cores)))
    return _spec("einsum", [tuple(core) for core in cores], tuple(modes), dict(sizes), names, "sizes")


def einsum_of_shape(equation: str, sizes: Mapping[str, int], shape: Sequence[int]) -> NetworkSpec:
    """The einsum network whose full tensor has this shape.

    Args:
        equation: as for `einsum_network`, with as many modes as the shape.
        sizes: the size of every bond; a mode's size may be given too, if it is that of the shape.
        shape: I_0..I_{d-1}.

    Raises:
        ArgumentError: the modes disagree with the shape, or as for `einsum_network`.
    """
    modes = read_equation(equation).modes
    if len(modes) != len(shape):
        raise ArgumentError("equation", f"{equation!r} has {len(modes)} modes after '->'; the tensor has {len(shape)}")
    if not isinstance(sizes, Mapping):
        raise ArgumentError("sizes", f"is {sizes!r}; it must be a mapping from letter to size")
    for k, (mode, size) in enumerate(zip(modes, shape, strict=True)):
        if sizes.get(mode, size) != size:
            raise ArgumentError("sizes", f"{mode} is {sizes[mode]}; it is mode {k} of the tensor, of size {size}")
    return einsum_network(equation, {**sizes, **dict(zip(modes, shape, strict=True))})


def _spec(
    format: str,
    cores: Sequence[tuple[str, ...]],
    modes: tuple[str, ...],
    sizes: dict[str, int],
    names: tuple[str, ...],
    bond_argument: str,
) -> NetworkSpec:
    # A bond that is too large is the only mistake that can be left here: it was given as `bond_argument`.
    with renaming({"sizes": bond_argument}):
        return NetworkSpec(format, tuple(cores), modes, tuple((k, int(v)) for k, v in sizes.items()), names)


def _mode_names(shape: Sequence[int]) -> tuple[str, ...]:
    return tuple(f"i{k}" for k in range(len(shape)))


def _names(kind: str, modes: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{kind}_{k}" for k in range(len(modes)))


def _mode_sizes(shape: Sequence[int]) -> dict[str, int]:
    if len(shape) < 2:
        raise ArgumentError(
            "shape", f"{tuple(shape)} has {len(shape)} modes; a network of this format needs at least 2"
        )
    return {f"i{k}": checked_size(size, f"shape[{k}]") for k, size in enumerate(shape)}


def _size_list(value: Any, argument: str, length: int) -> list[int]:
    if not is_list(value):
        return [checked_size(value, argument)] * length
    sizes = checked_list(value, argument)
    if len(sizes) != length:
        raise ArgumentError(argument, f"{sizes} has {len(sizes)} numbers; this shape needs {length}")
    return [checked_size(size, f"{argument}[{k}]") for k, size in enumerate(sizes)]
