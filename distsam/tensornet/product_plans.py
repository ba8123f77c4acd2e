"""How to contract a network with a batch of vectors: in which order, in which pieces, and what is made twice.

Candidates are orders: the one of fewest multiplications; all cores first, and then one matrix product, as of a dense
layer; two halves of the cores, one after the other; neighbours a few at a time. Each can run at once, with everything
kept for backward, or in slices of the batch or of the result, with what lies between made again in backward. The
cheapest follows from spec and batch alone.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import inf

from distsam.tensornet.contraction import ContractionPlan, Indices, plan_along
from distsam.tensornet.cost import Work, contraction_work, cost_ns, elements_of
from distsam.tensornet.product_orders import Path, paths_of
from distsam.tensornet.sliced import BATCH, SlicedPlan, node_places, room_elements
from distsam.tensornet.spec import NetworkSpec

# Elements of the largest tensor within a slice, as tried: 4 MiB and 1 MiB in float32, which stay in the cache.
SLICE_ELEMENTS = (2**20, 2**18)
# What is made of cores alone, and is no larger than this, is made once and not in every slice.
SMALL_TABLE = 2**18
# Under a ceiling, as small as it takes.
LOW_ELEMENTS = (2**16, 2**14, 2**12, 2**10, 1)
# Times that the cost model cannot tell apart.
ALIKE = 1.01
# An order of so many times the fewest multiplications is not looked at further.
HOPELESS = 100
Slices = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Table:
    """Cores that are contracted before the batch comes in.

    Args:
        cores: which.
        merge: how.
    """

    cores: tuple[int, ...]
    merge: ContractionPlan


@dataclass(frozen=True)
class ProductPlan:
    """How to contract a network with a batch of vectors.

    Args:
        order: what the order of contractions is called.
        tables: made first, of cores alone, with everything kept for backward.
        joined: the vectors and the tables; without slices it runs at once, with everything kept for backward.
        work: of forward and backward.
        multiply_adds: of a forward pass.
        kept_elements: of all that forward and backward make outside of slices, gradients too, at the worst moment; at
            most.
        sizes: of every index, and of the batch.
    """

    order: str
    tables: tuple[Table, ...]
    joined: SlicedPlan
    work: Work
    multiply_adds: int
    kept_elements: int
    sizes: tuple[tuple[str, int], ...]

    @cached_property
    def peak_elements(self) -> int:
        """Of all that forward and backward make, gradients too, at the worst moment; at most."""
        return self.kept_elements + (room_elements(self.joined, self.sizes) if self.joined.slices else 0)

    @property
    def cost_ns(self) -> float:
        """What forward and backward take by the cost model, in nanoseconds of one CPU thread."""
        return cost_ns(self.work)


@lru_cache(maxsize=1024)
def plan_product(
    spec: NetworkSpec, modes: Indices, batch_size: int, max_peak_elements: int | None = None
) -> ProductPlan:
    """The cheapest plan below the ceiling, and of those that cost nearly as much the one that needs the least memory;
    where there is none, the one that needs least.

    Args:
        spec: of the network.
        modes: over which the vectors run.
        batch_size: number of vectors.
        max_peak_elements: ceiling of `ProductPlan.peak_elements`.
    """
    plans = list(candidate_products(spec, modes, batch_size, ceiling=max_peak_elements is not None))
    allowed = [plan for plan in plans if max_peak_elements is None or plan.peak_elements <= max_peak_elements]
    if not allowed:
        return min(plans, key=lambda p: p.peak_elements)
    alike = ALIKE * min(plan.cost_ns for plan in allowed)
    return min((plan for plan in allowed if plan.cost_ns <= alike), key=lambda p: p.peak_elements)


def candidate_products(
    spec: NetworkSpec, modes: Indices, batch_size: int, ceiling: bool = False
) -> Iterator[ProductPlan]:
    """Every plan that is looked at.

    Args:
        spec, modes, batch_size: as of `plan_product`.
        ceiling: small slices too, which cost time for memory.
    """
    ways = [(elements, SMALL_TABLE) for elements in SLICE_ELEMENTS]
    ways += [(elements, elements) for elements in LOW_ELEMENTS] if ceiling else []
    for order in _orders(spec, modes, batch_size):
        yield order.at_once()
        output = order.plan.output
        for indices in ((BATCH,), output[1:], output) if ceiling else ((BATCH,), output[1:]):
            slices = {order.slices(indices, *way): way for way in reversed(ways)}
            yield from (order.sliced(cut, small) for cut, (_, small) in slices.items() if cut)


def _orders(spec: NetworkSpec, modes: Indices, batch_size: int) -> Iterator["_Order"]:
    """Every order of contractions that is looked at, none twice."""
    output = (BATCH, *(mode for mode in spec.modes if mode not in modes))
    operands = ((BATCH, *modes), *spec.cores)
    sizes = dict((*spec.sizes, (BATCH, batch_size)))
    seen = set[Path]()
    most: float = inf
    for name, path in paths_of(spec, operands, output, sizes):
        if path not in seen:
            seen.add(path)
            plan = plan_along(_positions(path, len(operands)), operands, output, tuple(sizes.items()))
            # The first is that of fewest.
            most = min(most, HOPELESS * plan.multiply_adds)
            if plan.multiply_adds <= most:
                yield _Order(name, plan, sizes)


def _positions(path: Path, num_operands: int) -> list[tuple[int, int]]:
    """The same pairs as positions among the tensors that remain."""
    remaining, positions = list(range(num_operands)), []
    for n, pair in enumerate(path):
        first, second = sorted(remaining.index(node) for node in pair)
        positions.append((first, second))
        del remaining[second], remaining[first]
        remaining.append(num_operands + n)
    return positions


@dataclass(frozen=True, eq=False)
class _Order:
    """An order of contractions of the vectors (node 0), the cores, and the results."""

    name: str
    plan: ContractionPlan
    sizes: Mapping[str, int]

    @cached_property
    def places(self) -> Path:
        return node_places(self.plan)

    @cached_property
    def indices(self) -> list[Indices]:
        """Of every node."""
        return [*self.plan.operands, *(pair.result for pair in self.plan.pairs)]

    @cached_property
    def of_batch(self) -> list[bool]:
        """For every node, whether the vectors are in it."""
        found = [n == 0 for n in range(len(self.plan.operands))]
        for a, b in self.places:
            found.append(found[a] or found[b])
        return found

    def at_once(self) -> ProductPlan:
        """Everything kept for backward."""
        tables = tuple(_lone(self.plan.operands[k + 1], k) for k in range(len(self.plan.operands) - 1))
        joined = SlicedPlan(self.plan, (), (False,) * len(self.plan.operands))
        made = sum(self.plan.intermediates)
        return ProductPlan(
            self.name,
            tables,
            joined,
            contraction_work(self.plan, self.sizes),
            self.plan.multiply_adds,
            # Every pair keeps what it multiplied, in the order in which it did.
            2 * made + self._largest_pair(self.sizes) + self._gradients,
            tuple(self.sizes.items()),
        )

    @cached_property
    def _gradients(self) -> int:
        return sum(elements_of(indices, self.sizes) for indices in self.plan.operands)

    def _largest_pair(self, sizes: Mapping[str, int]) -> int:
        return max(sum(elements_of(i, sizes) for i in (pair.a, pair.b)) for pair in self.plan.pairs)

    def _hoisted(self, cut: Iterable[str], small: int) -> list[bool]:
        """For every node, whether it is made once: no vectors in it, and small, or the same in every slice."""
        cut, first = set(cut), len(self.plan.operands)
        hoisted = [
            not of_batch and (n < first or self._is_hoisted(indices, cut, small))
            for n, (indices, of_batch) in enumerate(zip(self.indices, self.of_batch, strict=True))
        ]
        # And all that it is made of, however large.
        for n in reversed(range(first, len(hoisted))):
            if hoisted[n]:
                for node in self.places[n - first]:
                    hoisted[node] = True
        return hoisted

    def _is_hoisted(self, indices: Indices, cut: set[str], small: int) -> bool:
        return cut.isdisjoint(indices) or elements_of(indices, self.sizes) <= small

    def slices(self, indices: Indices, elements: int, small: int) -> Slices:
        """How much of `indices` fits when no tensor in between has more elements; the first are cut most. Empty where
        nothing need be cut."""
        first, sizes = len(self.plan.operands), dict(self.sizes)
        hoisted = self._hoisted(indices, small)
        large = [
            own
            for own, is_hoisted in zip(self.indices[first:], hoisted[first:], strict=True)
            if not is_hoisted and elements_of(own, sizes) > elements
        ]
        for index in indices:
            cut = [own for own in large if index in own]
            while sizes[index] > 1 and any(elements_of(own, sizes) > elements for own in cut):
                sizes[index] = -(-sizes[index] // 2)
            large = [own for own in large if elements_of(own, sizes) > elements]
        return tuple((index, sizes[index]) for index in indices if sizes[index] < self.sizes[index])

    def sliced(self, slices: Slices, small: int) -> ProductPlan:
        """In slices, with what lies between made again in backward."""
        hoisted = self._hoisted(dict(slices), small)
        inner = [n for n in range(len(self.plan.operands), len(hoisted)) if not hoisted[n]]
        used = {node for n in inner for node in self.places[n - len(self.plan.operands)]}
        frontier = [0, *sorted(node for node in used if node and hoisted[node])]
        tables = tuple(self._table(node) for node in frontier[1:])
        joined = self._subplan(frontier, inner, self.plan.output)
        num = 1
        for index, length in slices:
            num *= -(-self.sizes[index] // length)
        part = {**self.sizes, **dict(slices)}
        made = sum(elements_of(table.merge.output, self.sizes) + sum(table.merge.intermediates) for table in tables)
        # Each operand is cut forward and backward, and its gradient added.
        cuts = Work(calls=2 * len(joined.operands))
        work = contraction_work(joined, part, rebuilds=True).plus(cuts).in_slices(num)
        return ProductPlan(
            self.name,
            tables,
            SlicedPlan(joined, slices, (False,) * len(joined.operands)),
            work.plus(*(contraction_work(table.merge, self.sizes) for table in tables)),
            sum(table.merge.multiply_adds for table in tables) + joined.multiply_adds,
            # Of tables: values, gradients, and one of them in the order in which it is multiplied.
            3 * made + elements_of(self.plan.output, self.sizes) + self._gradients,
            tuple(self.sizes.items()),
        )

    def _table(self, node: int) -> Table:
        first, inside, waiting = len(self.plan.operands), list[int](), [node]
        while waiting:
            inside.append(waiting.pop())
            if inside[-1] >= first:
                waiting += self.places[inside[-1] - first]
        leaves = sorted(n for n in inside if n < first)
        pairs = sorted(n for n in inside if n >= first)
        return Table(tuple(n - 1 for n in leaves), self._subplan(leaves, pairs, self.indices[node]))

    def _subplan(self, leaves: list[int], pairs: list[int], output: Indices) -> ContractionPlan:
        number = {node: n for n, node in enumerate([*leaves, *pairs])}
        first = len(self.plan.operands)
        path = tuple((number[a], number[b]) for a, b in (self.places[n - first] for n in pairs))
        operands = tuple(self.indices[n] for n in leaves)
        sizes = {i: self.sizes[i] for indices in operands for i in indices}
        return plan_along(_positions(path, len(leaves)), operands, output, tuple(sizes.items()))


def _lone(indices: Indices, core: int) -> Table:
    return Table((core,), ContractionPlan((indices,), indices, (), 0, ()))
