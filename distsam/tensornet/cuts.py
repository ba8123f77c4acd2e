"""How a network can be cut into groups of cores that hang together."""

from collections.abc import Iterator, Sequence
from itertools import combinations
from math import prod

from distsam.tensornet.contraction import contiguous
from distsam.tensornet.spec import NetworkSpec

Cut = tuple[tuple[int, ...], ...]


def connected_cuts(spec: NetworkSpec) -> Iterator[Cut]:
    """Every way to cut the network into groups that hang together by indices they share."""
    for cut in _set_partitions(tuple(range(spec.num_cores))):
        if all(_is_connected(spec, group) for group in cut):
            yield cut


def _set_partitions(items: tuple[int, ...]) -> Iterator[Cut]:
    if not items:
        yield ()
        return
    for cut in _set_partitions(items[1:]):
        yield (items[:1], *cut)
        for n, group in enumerate(cut):
            yield (*cut[:n], (items[0], *group), *cut[n + 1 :])


def _is_connected(spec: NetworkSpec, group: Sequence[int]) -> bool:
    reached, waiting = set(spec.cores[group[0]]), list(group[1:])
    while linked := [k for k in waiting if reached.intersection(spec.cores[k])]:
        reached.update(*(spec.cores[k] for k in linked))
        waiting = [k for k in waiting if k not in linked]
    return not waiting


def joined_pairs(spec: NetworkSpec, cut: Cut) -> Iterator[Cut]:
    for a, b in combinations(range(len(cut)), 2):
        joined = tuple(sorted(cut[a] + cut[b]))
        if _is_connected(spec, joined):
            yield (*(group for n, group in enumerate(cut) if n not in (a, b)), joined)


def packed_neighbours(spec: NetworkSpec, max_rows: int) -> Cut:
    """Neighbours, in an order in which each core hangs on those before it, as long as their rows are few enough."""
    modes = set(spec.modes)
    groups: list[list[int]] = []
    rows, inside = 1, set[str]()
    for k in contiguous(spec.cores):
        own = prod(spec.size(i) for i in spec.cores[k] if i in modes and i not in inside)
        if groups and rows * own <= max_rows and inside.intersection(spec.cores[k]):
            groups[-1].append(k)
            rows, inside = rows * own, inside.union(spec.cores[k])
        else:
            groups.append([k])
            rows, inside = own, set(spec.cores[k])
    return tuple(tuple(sorted(group)) for group in groups)
