"""How to evaluate B entries: which cores to merge over all their modes before rows are gathered.

A network is cut into groups of cores. Each group is contracted over all combinations of its modes into a table, one
row per combination; every entry takes one row of each table; what is left is a contraction over the bonds between
groups, B times. Groups of one core gather slices of the cores; one group of all cores is the full tensor. Merging
costs the same whatever B is, many small groups cost B x bond x bond: the cheapest cut follows from spec and B alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from math import prod

from distsam.tensornet.contraction import ContractionPlan, Indices, plan_contraction
from distsam.tensornet.spec import NetworkSpec

# The index of the batch in contractions; no index of a spec can be called so.
BATCH = "*"
# All cuts are tried up to this many cores (52 of them); above it, groups are joined greedily.
MAX_CORES_EXHAUSTIVE = 5

Cut = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class GroupPlan:
    """One group: which cores, how to merge them, and which modes its rows run over (none: every entry uses it all)."""

    cores: tuple[int, ...]
    modes: Indices
    merge: ContractionPlan

    @property
    def gathered(self) -> Indices:
        """The indices of what is gathered: the table's, with the batch in the place of the modes."""
        return tuple(dict.fromkeys(BATCH if i in self.modes else i for i in self.merge.output))


@dataclass(frozen=True)
class EntryPlan:
    """How to evaluate a batch of entries.

    Args:
        groups: the cut.
        join: the contraction of what is gathered.
        batch_last: gather from tables laid out (bonds, rows) into (bonds, B), for joins that are products and sums;
            otherwise rows are gathered for batched matrix products.
        cost_ns: what forward and backward cost by the model below, in nanoseconds of one thread.
    """

    groups: tuple[GroupPlan, ...]
    join: ContractionPlan
    batch_last: bool
    cost_ns: float

    @property
    def cut(self) -> Cut:
        """The cores of every group."""
        return tuple(group.cores for group in self.groups)


def plan_entries(spec: NetworkSpec, batch_size: int) -> EntryPlan:
    """The cheapest plan for `batch_size` entries; plans are kept per spec and next power of two."""
    return _cheapest(spec, 1 << max(batch_size - 1, 0).bit_length())


@lru_cache(maxsize=1024)
def _cheapest(spec: NetworkSpec, batch_size: int) -> EntryPlan:
    if spec.num_cores <= MAX_CORES_EXHAUSTIVE:
        cuts = _connected_cuts(spec)
        return min((plan_cut(spec, cut, batch_size) for cut in cuts), key=lambda plan: plan.cost_ns)
    plans = [plan_cut(spec, tuple((k,) for k in range(spec.num_cores)), batch_size)]
    while len(plans[-1].groups) > 1:
        joined = [plan_cut(spec, cut, batch_size) for cut in _joined_pairs(spec, plans[-1].cut)]
        if not joined:
            break
        plans.append(min(joined, key=lambda plan: plan.cost_ns))
    return min(plans, key=lambda plan: plan.cost_ns)


def _connected_cuts(spec: NetworkSpec) -> Iterator[Cut]:
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


def _joined_pairs(spec: NetworkSpec, cut: Cut) -> Iterator[Cut]:
    for a, b in combinations(range(len(cut)), 2):
        joined = tuple(sorted(cut[a] + cut[b]))
        if _is_connected(spec, joined):
            yield (*(group for n, group in enumerate(cut) if n not in (a, b)), joined)


def plan_cut(spec: NetworkSpec, cut: Cut, batch_size: int) -> EntryPlan:
    """The plan that uses these groups of cores, and its cost."""
    outer = [_outer_bonds(spec, group) for group in cut]
    modes = [tuple(m for m in spec.modes if any(m in spec.cores[k] for k in group)) for group in cut]
    # Only where every table carries every outer bond is the join a product and a sum.
    batch_last = all(m and set(bonds) == set(outer[0]) for bonds, m in zip(outer, modes, strict=True))
    groups = []
    for group, bonds, group_modes in zip(cut, outer, modes, strict=True):
        table = bonds + group_modes if batch_last else group_modes + bonds
        if len(group) == 1 and len(group_modes) <= 1 and not batch_last:
            # One core and no positions to combine: its slices are taken where they lie.
            table = tuple(i for i in spec.cores[group[0]] if i in table)
        merge = plan_contraction(tuple(spec.cores[k] for k in group), table, spec.sizes)
        natural = tuple(i for i in merge.natural_output if i in group_modes)
        if natural != group_modes and len(group) > 1:
            # The order in which positions combine into a row is free: take the one that costs no copy.
            table = tuple(i for i in table if i not in natural)
            table = table + natural if batch_last else natural + table
            group_modes, merge = natural, plan_contraction(merge.operands, table, spec.sizes)
        groups.append(GroupPlan(group, group_modes, merge))
    sizes = (*spec.sizes, (BATCH, batch_size))
    join = plan_contraction(tuple(group.gathered for group in groups), (BATCH,), sizes)
    cost_ns = _cost_ns(spec, groups, join, batch_last, batch_size)
    return EntryPlan(tuple(groups), join, batch_last, cost_ns)


def _outer_bonds(spec: NetworkSpec, group: Sequence[int]) -> Indices:
    inside = {i for k in group for i in spec.cores[k]}
    outside = {i for k, core in enumerate(spec.cores) if k not in group for i in core}
    return tuple(bond for bond in spec.bonds if bond in inside and bond in outside)


def _cost_ns(
    spec: NetworkSpec, groups: Sequence[GroupPlan], join: ContractionPlan, batch_last: bool, batch_size: int
) -> float:
    cost = 20000.0 * (len(join.pairs) + len(groups)) + 1.0 * join.multiply_adds
    for group in groups:
        cost += 0.1 * group.merge.multiply_adds + 3.0 * sum(group.merge.intermediates)
        row = prod(spec.size(i) for i in group.gathered if i != BATCH)
        cost += 4.0 * row * batch_size if group.modes else 0.0
    return cost
