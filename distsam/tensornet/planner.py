"""How to evaluate B entries: which cores to merge over all their modes before rows are gathered.

A network is cut into groups of cores. Each group is contracted over all combinations of its modes into a table, one
row per combination; every entry takes one row of each table; what is left is a contraction over the bonds between
groups, B times. Groups of one core gather slices of the cores; one group of all cores is the full tensor. Merging
costs the same whatever B is, many small groups cost B x bond x bond: the cheapest cut follows from spec and B alone.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from math import prod
from typing import NamedTuple

from distsam.tensornet import kernels
from distsam.tensornet.contraction import ContractionPlan, Indices, plan_contraction
from distsam.tensornet.cost import FAR_ELEMENTS, LARGE_ELEMENTS, Work, contraction_work, cost_ns, elements_of
from distsam.tensornet.cuts import Cut, connected_cuts, joined_pairs, packed_neighbours
from distsam.tensornet.sliced import BATCH, SlicedPlan, room_elements
from distsam.tensornet.spec import NetworkSpec

# All cuts are tried up to this many cores (52 of them); above it, groups are joined greedily, and of still more cores
# neighbours are packed together: the greedy search looks at as many cuts as there are pairs of groups, again and again.
MAX_CORES_EXHAUSTIVE = 5
MAX_CORES_GREEDY = 12
# Rows of a table of packed neighbours. The cuts are few, because each is planned in a time that grows with the cores.
PACKED_ROWS = (1, 2**4, 2**7, 2**10, 2**13, 2**16)

# Elements of the largest tensor when entries are gathered and joined in slices.
SLICE_ELEMENTS = 2**18
# A joined block of gathered numbers: 2 MiB in float32, so that it is still in a core's cache when it is used.
BLOCK_ELEMENTS = 2**19
# Measured, CP and trains of bond 16 with 20,000 to 4 million rows, one thread: with twice as many rows as entries both
# ways take about the same time, with four times as many columns take up to twice, with ten times as many 1.3 to 3.9
# times as long.
ROWS_PER_ENTRY = 2


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
        fused: rows are gathered, multiplied and added up in one pass, by `kernels`.
        slice_length: so many entries are gathered and joined at a time, and again in backward; None: all at once,
            with everything kept for backward.
        work: what forward and backward have to do.
        multiply_adds: of a forward pass.
        batch_elements: size of the largest tensor that has a row per entry.
        kept_elements: of all that forward and backward make outside of slices, gradients too, at the worst moment; at
            most.
        sizes: of every index, and of the batch.
    """

    groups: tuple[GroupPlan, ...]
    join: ContractionPlan
    batch_last: bool
    fused: bool
    slice_length: int | None
    work: Work
    multiply_adds: int
    batch_elements: int
    kept_elements: int
    sizes: tuple[tuple[str, int], ...]

    @property
    def sliced(self) -> SlicedPlan | None:
        """The join in slices, if it is."""
        if self.slice_length is None:
            return None
        return SlicedPlan(self.join, ((BATCH, self.slice_length),), tuple(bool(group.modes) for group in self.groups))

    @cached_property
    def peak_elements(self) -> int:
        """Of all that forward and backward make, gradients too, at the worst moment; at most."""
        return self.kept_elements + (room_elements(self.sliced, self.sizes) if self.sliced else 0)

    @property
    def is_product_sum(self) -> bool:
        """Whether rows are joined number by number, and no contraction is left."""
        return self.batch_last or self.fused

    @property
    def cost_ns(self) -> float:
        """What forward and backward take by the cost model, in nanoseconds of one CPU thread."""
        return cost_ns(self.work)

    @property
    def cut(self) -> Cut:
        """The cores of every group."""
        return tuple(group.cores for group in self.groups)


def plan_entries(
    spec: NetworkSpec,
    batch_size: int,
    fixed: Indices | None = None,
    max_peak_elements: int | None = None,
    fused: bool = False,
) -> EntryPlan:
    """The cheapest plan for `batch_size` entries; plans are kept per spec and next power of two.

    Args:
        spec: of the network.
        batch_size: number of entries.
        fixed: modes of which every entry has one position; of the others it has all, as the rows of a table have.
            None: all modes are fixed.
        max_peak_elements: ceiling of `EntryPlan.peak_elements`; where no plan stays below, the lowest is given, and
            the plan is for this very batch.
        fused: `kernels` may join the rows.
    """
    fixed = spec.modes if fixed is None else fixed
    if max_peak_elements is not None:
        return _cheapest(spec, max(batch_size, 1), fixed, fused, max_peak_elements)
    return _cheapest(spec, next_power_of_two(batch_size), fixed, fused)


def next_power_of_two(batch_size: int) -> int:
    """So many entries are planned for, so that one plan serves many batch sizes."""
    return 1 << max(batch_size - 1, 0).bit_length()


@lru_cache(maxsize=1024)
def _cheapest(spec: NetworkSpec, batch_size: int, fixed: Indices, fused: bool, ceiling: int | None = None) -> EntryPlan:
    def order(plan: EntryPlan) -> tuple[float, float]:
        above = 0 if ceiling is None or plan.peak_elements <= ceiling else plan.peak_elements
        return above, plan.cost_ns

    def cheapest(cuts: Iterable[Cut]) -> EntryPlan:
        arguments = batch_size, fixed, ceiling is not None, fused
        return min((plan for cut in cuts for plan in ways_to_join(spec, cut, *arguments)), key=order)

    if spec.num_cores <= MAX_CORES_EXHAUSTIVE:
        return cheapest(connected_cuts(spec))
    if spec.num_cores > MAX_CORES_GREEDY:
        return cheapest(dict.fromkeys(packed_neighbours(spec, rows) for rows in PACKED_ROWS))
    plans = [cheapest([tuple((k,) for k in range(spec.num_cores))])]
    while len(plans[-1].groups) > 1:
        joined = list(joined_pairs(spec, plans[-1].cut))
        if not joined:
            break
        plans.append(cheapest(joined))
    return min(plans, key=order)


def ways_to_join(
    spec: NetworkSpec,
    cut: Cut,
    batch_size: int,
    fixed: Indices | None = None,
    ceiling: bool = False,
    fused: bool = False,
) -> Iterator[EntryPlan]:
    """The plans that use these groups of cores: all entries at once, and slices of them that stay in the cache; under
    a ceiling slices of any length; and where `kernels` may join the rows, that."""
    yield (plan := plan_cut(spec, cut, batch_size, fixed))
    if fused and (joined_here := plan_cut(spec, cut, batch_size, fixed, fused=True)).fused:
        yield joined_here
    length = batch_size
    while length > 1 and plan.batch_elements // batch_size * length > SLICE_ELEMENTS:
        length = -(-length // 2)
    if length < batch_size and plan.join.pairs and not plan.batch_last:
        yield plan_cut(spec, cut, batch_size, fixed, length)
    while ceiling and length > 1:
        length = -(-length // 4)
        yield plan_cut(spec, cut, batch_size, fixed, length)


def plan_cut(
    spec: NetworkSpec,
    cut: Cut,
    batch_size: int,
    fixed: Indices | None = None,
    slice_length: int | None = None,
    fused: bool = False,
) -> EntryPlan:
    """The plan that uses these groups of cores, and its work; other arguments as of EntryPlan and `plan_entries`.
    Rows that are not joined by a product and a sum are not fused."""
    batch_size = max(batch_size, 1)  # none costs as much as one
    place = {index: n for n, index in enumerate((*spec.modes, *spec.bonds))}
    inside = [sorted({i for k in group for i in spec.cores[k]}, key=place.__getitem__) for group in cut]
    given = set(spec.modes if fixed is None else fixed)
    modes = [tuple(i for i in indices if i in given) for indices in inside]
    outer = [_outer_indices(spec, *item, given) for item in zip(cut, inside, strict=True)]
    all_at_once = slice_length is None and len(given) == spec.order
    fused = fused and all_at_once and 1 < len(cut) <= kernels.MAX_TABLES and _shares_all_bonds(outer, modes)
    batch_last = not fused and all_at_once and _gathers_columns(spec, outer, modes, batch_size)
    plan_group = partial(_plan_group, spec, batch_size=batch_size, batch_last=batch_last, fused=fused)
    groups = tuple(plan_group(*group) for group in zip(cut, modes, outer, strict=True))
    output = (BATCH, *(mode for mode in spec.modes if mode not in given))
    join = plan_contraction(tuple(group.gathered for group in groups), output, (*spec.sizes, (BATCH, batch_size)))
    rows = [prod(spec.size(i) for i in group.gathered if i != BATCH) for group in groups if group.modes]
    joining = _Joining(spec, groups, join, rows, batch_last, fused, batch_size, slice_length)
    if fused:
        batch_elements = batch_size
    elif batch_last:
        batch_elements = min(rows[0], block_length(batch_size)) * batch_size
    else:
        batch_elements = max([max(rows) * batch_size, *join.intermediates])
        batch_elements = batch_elements // batch_size * (slice_length or batch_size)
    multiply_adds = sum(group.merge.multiply_adds for group in groups) + join.multiply_adds
    return EntryPlan(
        groups,
        join,
        batch_last,
        fused,
        slice_length,
        joining.work(),
        multiply_adds,
        batch_elements,
        joining.kept_elements(),
        tuple(joining.sizes.items()),
    )


def _gathers_columns(spec: NetworkSpec, bonds: Sequence[Indices], modes: Sequence[Indices], batch_size: int) -> bool:
    """True where the join is a product and a sum, and no table is so much longer than the batch that to lay it out as
    columns, and its gradient back, is most of the work."""
    longest = max(prod(spec.size(i) for i in rows) for rows in modes)
    return _shares_all_bonds(bonds, modes) and longest <= ROWS_PER_ENTRY * batch_size


def _shares_all_bonds(bonds: Sequence[Indices], modes: Sequence[Indices]) -> bool:
    """True where every table carries every outer bond, so that the join is a product and a sum."""
    return all(rows and set(own) == set(bonds[0]) for own, rows in zip(bonds, modes, strict=True))


def _plan_group(
    spec: NetworkSpec,
    cores: tuple[int, ...],
    modes: Indices,
    bonds: Indices,
    batch_size: int,
    batch_last: bool,
    fused: bool,
) -> GroupPlan:
    def merge_into(table: Indices) -> ContractionPlan:
        sizes = {i: spec.size(i) for k in cores for i in spec.cores[k]}
        return plan_contraction(tuple(spec.cores[k] for k in cores), table, tuple(sizes.items()))

    if len(cores) == 1 and len(modes) <= 1 and not (batch_last or fused):
        # One core and no positions to combine: its slices are taken where they lie, or of many more entries than
        # positions out of a copy in which each is one piece.
        own = tuple(i for i in spec.cores[cores[0]] if i in modes + bonds)
        if batch_size > prod(spec.size(i) for i in modes):
            own = (*modes, *(i for i in own if i not in modes))
        return GroupPlan(cores, modes, merge_into(own))
    merge = merge_into(bonds + modes if batch_last else modes + bonds)
    # The order in which positions combine into a row is free: take the one that costs no copy.
    modes = tuple(i for i in merge.natural_output if i in modes)
    return GroupPlan(cores, modes, merge_into(bonds + modes if batch_last else modes + bonds))


def _outer_indices(spec: NetworkSpec, group: Sequence[int], inside: Sequence[str], fixed: set[str]) -> Indices:
    """Bonds to other groups, and modes of which every entry has all positions; bonds first."""
    members = set(group)
    bonds = [i for i in inside if i in spec.place_of_bond and not members.issuperset(spec.carriers[i])]
    return (*bonds, *(i for i in inside if i in spec.place_of_mode and i not in fixed))


class _Joining(NamedTuple):
    """Groups whose rows are joined, as of EntryPlan; `rows` are the elements of a row of each."""

    spec: NetworkSpec
    groups: Sequence[GroupPlan]
    join: ContractionPlan
    rows: Sequence[int]
    batch_last: bool
    fused: bool
    batch_size: int
    slice_length: int | None

    @property
    def sizes(self) -> dict[str, int]:
        """Of every index, and of the batch."""
        return {**dict(self.spec.sizes), BATCH: self.batch_size}

    def work(self) -> Work:
        """Of forward and backward."""
        lengths = [elements_of(group.merge.output, self.sizes) for group in self.groups]
        tables = sum(lengths)
        merges = [contraction_work(group.merge, self.sizes) for group in self.groups]
        # A table's gradient is filled with zeros, and added to.
        fill = Work(calls=2 * len(self.groups), moved_elements=2 * tables)
        if self.fused:
            far = sum(own for own, length in zip(self.rows, lengths, strict=True) if length >= FAR_ELEMENTS)
            num, rows = self.batch_size, self.batch_size * len(self.groups)
            passes = Work(fused_elements=sum(self.rows) * num, fused_rows=rows, fused_far_elements=far * num)
            return fill.plus(passes, *merges)
        if self.batch_last:
            return fill.plus(Work(column_elements=sum(self.rows) * self.batch_size), *merges)
        length = self.slice_length or self.batch_size
        taken = [row * length for row in self.rows]
        # In slices rows are gathered in backward too; that is half of a gather and the addition of its gradient.
        gather = Work(
            # Gathered forward and backward, cut and added.
            calls=4 * len(self.groups) if self.slice_length else 0,
            row_elements=(1.5 if self.slice_length else 1) * sum(taken),
            far_elements=2 * sum(n for n in taken if n >= FAR_ELEMENTS),
            large_elements=2 * sum(n for n in taken if n >= LARGE_ELEMENTS),
        )
        part = {**self.sizes, BATCH: length}
        joined = gather.plus(contraction_work(self.join, part, rebuilds=self.slice_length is not None))
        return fill.plus(joined.in_slices(self.batch_size / length), *merges)

    def kept_elements(self) -> int:
        """At most, outside of slices: the gradients of the cores; what is merged, in the order in which it is
        multiplied, and its gradient; row numbers (of twice the bytes, for each table, and two on the way); the result;
        what is gathered."""
        num = len(self.groups) + 2
        merged = sum(elements_of(g.merge.output, self.sizes) + sum(g.merge.intermediates) for g in self.groups)
        kept = self.spec.num_parameters + 3 * merged + elements_of(self.join.output, self.sizes)
        kept += 2 * num * self.batch_size
        if self.fused or self.slice_length is not None:
            return kept
        if self.batch_last:
            return kept + num * min(block_length(self.batch_size), self.rows[0]) * self.batch_size
        made = sum(elements_of(pair.result, self.sizes) for pair in self.join.pairs)
        # Rows and what comes of them, the same in the order in which it is multiplied, and gradients.
        return kept + 3 * (sum(self.rows) * self.batch_size + made)


def block_length(batch_size: int) -> int:
    """Over how many bond combinations at a time rows are gathered, multiplied and summed."""
    return max(1, BLOCK_ELEMENTS // max(batch_size, 1))
