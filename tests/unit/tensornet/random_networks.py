"""Networks of any form, drawn by hypothesis: trees, rings, indices of three cores and more, bonds of 1."""

from hypothesis import strategies as st

import distsam
from distsam.errors import InputError


@st.composite
def any_network(draw: st.DrawFn) -> distsam.NetworkSpec:
    """Two to five cores that hang together, with up to two modes each."""
    num = draw(st.integers(2, 5))
    carried: list[list[str]] = [[] for _ in range(num)]
    sizes: dict[str, int] = {}
    for k in range(1, num):  # a tree
        _carry(carried, sizes, f"t{k}", {k, draw(st.integers(0, k - 1))}, draw(st.integers(1, 3)))
    for n in range(draw(st.integers(0, 2))):  # closed to rings, and indices that many cores share
        cores = draw(st.sets(st.integers(0, num - 1), min_size=2, max_size=num))
        _carry(carried, sizes, f"s{n}", cores, draw(st.integers(1, 3)))
    modes = []
    for k in range(num):
        for n in range(draw(st.integers(0 if modes or k < num - 1 else 1, 2))):
            modes.append(f"m{k}{n}")
            # A mode that two cores carry is a batch of both.
            cores = draw(st.sets(st.integers(0, num - 1), max_size=1)) | {k}
            _carry(carried, sizes, modes[-1], cores, draw(st.integers(1, 4)))
    orders = [tuple(draw(st.permutations(core))) for core in carried]
    modes = draw(st.permutations(modes))
    return _allowed(orders, tuple(modes), sizes)


def _carry(carried: list[list[str]], sizes: dict[str, int], index: str, cores: set[int], size: int) -> None:
    sizes[index] = size
    for k in sorted(cores):
        carried[k].append(index)


def _allowed(cores: list[tuple[str, ...]], modes: tuple[str, ...], sizes: dict[str, int]) -> distsam.NetworkSpec:
    """Bonds that are larger than they can use are 1."""
    names = tuple(f"c{k}" for k in range(len(cores)))
    try:
        return distsam.NetworkSpec("einsum", tuple(cores), modes, tuple(sizes.items()), names)
    except InputError:
        ones = {index: size if index in modes else 1 for index, size in sizes.items()}
        return distsam.NetworkSpec("einsum", tuple(cores), modes, tuple(ones.items()), names)
