"""In which orders a network and a batch of vectors can be contracted."""

from collections.abc import Iterator, Mapping

from distsam.tensornet.contraction import Indices, contiguous, plan_contraction
from distsam.tensornet.sliced import node_places
from distsam.tensornet.spec import NetworkSpec

# So many neighbours are merged before they meet the vectors, of networks of up to so many cores.
GROUP_LENGTHS = (1, 2, 3)
MAX_CORES_GROUPED = 24
# Every place to cut a network in two is tried up to this many cores; of more, the middle.
MAX_CORES_CUT = 12

# Pairs of nodes: operands are numbered first, results go on where they end.
Path = tuple[tuple[int, int], ...]


def paths_of(
    spec: NetworkSpec, operands: tuple[Indices, ...], output: Indices, sizes: Mapping[str, int]
) -> Iterator[tuple[str, Path]]:
    """What each order is called, and its pairs; the first is that of fewest multiplications.

    Args:
        spec: of the network.
        operands: the indices of the vectors, node 0, and of every core: core k is node k + 1.
        output: those of the result.
        sizes: of every index.
    """
    flat = plan_contraction(operands, output, tuple(sizes.items()))
    yield "fewest multiplications", node_places(flat)
    everything = tuple(range(spec.num_cores))
    merge, whole = _merged(spec, everything, len(operands))
    yield "all cores first", (*merge, (0, whole))
    order, num = contiguous(spec.cores), spec.num_cores
    if num <= MAX_CORES_GROUPED:
        yield from _grouped_paths(spec, operands, output, sizes)
    for cut in range(1, num) if num <= MAX_CORES_CUT else (num // 2,):
        halves = tuple(sorted(order[:cut])), tuple(sorted(order[cut:]))
        for first, second in (halves, halves[::-1]):
            merge_first, node_first = _merged(spec, first, len(operands))
            merge_second, node_second = _merged(spec, second, len(operands) + len(merge_first))
            done = len(operands) + len(merge_first) + len(merge_second)
            steps = (0, node_first), (done, node_second)
            yield f"cores {_named(first)} first, then {_named(second)}", (*merge_first, *merge_second, *steps)


def _grouped_paths(
    spec: NetworkSpec, operands: tuple[Indices, ...], output: Indices, sizes: Mapping[str, int]
) -> Iterator[tuple[str, Path]]:
    """Neighbours merged first, a few at a time, and what they give in the order of fewest multiplications: more of
    them, in fewer and wider matrix products."""
    for length in GROUP_LENGTHS:
        groups = _groups(spec, operands[0], length)
        for turned in (True, False):
            steps: list[tuple[int, int]] = []
            nodes = [0]
            groups.reverse()
            for group in groups:
                merge, node = _merged(spec, group, len(operands) + len(steps))
                steps += merge
                nodes.append(node)
            inside = [operands[0], *(_outside(spec, group) for group in groups)]
            plan = plan_contraction(tuple(inside), output, tuple(sizes.items()))
            nodes += [len(operands) + len(steps) + n for n in range(len(plan.pairs))]
            steps += [(nodes[a], nodes[b]) for a, b in node_places(plan)]
            yield f"{length} neighbours together{', the last first' * turned}", tuple(steps)


def _groups(spec: NetworkSpec, vectors: Indices, length: int) -> list[tuple[int, ...]]:
    """So many neighbours together of the cores that carry modes of the vectors, of those that carry modes of the
    result, and of those that carry both; a core without modes stays alone."""
    kinds: dict[tuple[bool, bool], list[int]] = {}
    groups: list[tuple[int, ...]] = []
    for k, core in enumerate(spec.cores):
        modes = [index for index in core if index in spec.place_of_mode]
        kind = any(mode in vectors for mode in modes), any(mode not in vectors for mode in modes)
        if modes:
            kinds.setdefault(kind, []).append(k)
        else:
            groups.append((k,))
    for cores in kinds.values():
        groups += [tuple(cores[start : start + length]) for start in range(0, len(cores), length)]
    return sorted(groups)


def _outside(spec: NetworkSpec, cores: tuple[int, ...]) -> Indices:
    """The indices of these cores once they are merged."""
    others = {i for k, core in enumerate(spec.cores) if k not in cores for i in core}
    inside = dict.fromkeys(i for k in cores for i in spec.cores[k])
    return tuple(i for i in inside if i in spec.place_of_mode or i in others)


def _named(cores: tuple[int, ...]) -> str:
    return ", ".join(map(str, cores))


def _merged(spec: NetworkSpec, cores: tuple[int, ...], next_node: int) -> tuple[Path, int]:
    """Pairs that contract these cores, and the node of the result; core k is node k + 1."""
    inside = dict.fromkeys(i for k in cores for i in spec.cores[k])
    sizes = tuple((i, spec.size(i)) for i in inside)
    merge = plan_contraction(tuple(spec.cores[k] for k in cores), _outside(spec, cores), sizes)
    nodes = [k + 1 for k in cores] + [next_node + n for n in range(len(merge.pairs))]
    return tuple((nodes[a], nodes[b]) for a, b in node_places(merge)), nodes[-1]
