"""What an evaluation will do, and why, in words."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, prod

import torch

from distsam.errors import ArgumentError
from distsam.tensornet import kernels
from distsam.tensornet.arguments import checked_size
from distsam.tensornet.contraction import ContractionPlan, Indices, plan_contraction
from distsam.tensornet.cost import contraction_work, cost_ns
from distsam.tensornet.cuts import connected_cuts
from distsam.tensornet.planner import EntryPlan, next_power_of_two, plan_entries, ways_to_join
from distsam.tensornet.product_plans import ProductPlan, candidate_products, plan_product
from distsam.tensornet.sliced import BATCH, SlicedPlan
from distsam.tensornet.spec import NetworkSpec

# Other ways that are named, and up to how many cores all of them are looked at for that.
_OTHERS, _MAX_CORES_COMPARED = 3, 5


@dataclass(frozen=True)
class Evaluation:
    """How a network is evaluated for a batch: what `NetworkSpec.plan` gives.

    Args:
        spec: of the network.
        batch_size: entries, or vectors.
        vectors_over: modes of the vectors that the network is multiplied with; none: entries are computed.
        plan: what will run.
        itemsize: bytes of a number.
        by_kernels: whether rows may be joined by `kernels`.
    """

    spec: NetworkSpec
    batch_size: int
    vectors_over: Indices
    plan: EntryPlan | ProductPlan
    itemsize: int
    by_kernels: bool

    @property
    def expected_s(self) -> float:
        """Forward and backward, in seconds of one CPU thread, by the cost model."""
        return self.plan.cost_ns / 1e9

    @property
    def flops(self) -> int:
        """Of a forward pass: two for a multiplication and its addition."""
        return 2 * self.plan.multiply_adds

    @property
    def peak_bytes(self) -> int:
        """Of all that forward and backward make, gradients too, at the worst moment; at most."""
        return self.plan.peak_elements * self.itemsize

    def describe(self) -> str:
        """What will be done, in which order, what it takes, and what else was looked at."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        what = f"{self.batch_size:,} entries"
        if self.vectors_over:
            what = f"{self.batch_size:,} vectors over {' '.join(self.vectors_over)}"
        yield f"{what} of {self.spec.format} {self.spec.shape}, {self.spec.num_parameters:,} parameters:"
        yield from self._entry_steps(self.plan) if isinstance(self.plan, EntryPlan) else self._product_steps(self.plan)
        expected = f"{_time(self.plan.cost_ns)} forward and backward expected of one CPU thread"
        yield f"{self.flops / 1e9:.3g} GFLOP forward; {expected}, {_bytes(self.peak_bytes)} at most"
        yield from self._reasons()

    def _entry_steps(self, plan: EntryPlan) -> Iterator[str]:
        for group in plan.groups:
            yield from self._merged(group.cores, group.merge)
        joint = f"join the rows: {_steps(plan.join, self._names)}"
        if plan.is_product_sum:
            joint = f"multiply the rows and add up{', in one pass compiled by numba' * plan.fused}"
        taken = ", ".join(f"[{_named(g.cores)}] by {' '.join(g.modes)}" for g in plan.groups if g.modes)
        yield f"  take a row of {taken} for each entry; {joint if len(plan.groups) > 1 else 'that is it'}"
        if plan.slice_length is not None:
            yield f"  {plan.slice_length:,} entries at a time, and again in backward"

    def _product_steps(self, plan: ProductPlan) -> Iterator[str]:
        for table in plan.tables:
            yield from self._merged(table.cores, table.merge)
        names = ["vectors", *(f"[{_named(table.cores)}]" for table in plan.tables)]
        yield f"  then {_steps(plan.joined.plan, names)}"
        if plan.joined.slices:
            yield f"  {self._slices(plan.joined)}, and again in backward: what lies between is never whole"
        else:
            yield "  at once; what lies between is kept for backward"

    @property
    def _names(self) -> list[str]:
        assert isinstance(self.plan, EntryPlan)
        return [f"[{_named(group.cores)}]" for group in self.plan.groups]

    def _merged(self, cores: tuple[int, ...], merge: ContractionPlan) -> Iterator[str]:
        if merge.pairs:
            size = " x ".join(str(self.spec.size(index)) for index in merge.output)
            yield f"  merge cores {_named(cores)} into [{_named(cores)}], {size}"

    def _slices(self, joined: SlicedPlan) -> str:
        sizes = {**dict(self.spec.sizes), BATCH: self.batch_size}
        num = prod(ceil(sizes[index] / length) for index, length in joined.slices)
        cut = ", ".join(f"{'the batch' if index == BATCH else index} by {length}" for index, length in joined.slices)
        return f"in {num} slices ({cut})"

    def _reasons(self) -> Iterator[str]:
        if self.vectors_over:
            plans = list(candidate_products(self.spec, self.vectors_over, max(self.batch_size, 1)))
            others = sorted((plan.cost_ns, self._product_name(plan)) for plan in plans)
            yield f"a dense layer of the same sizes: {_time(self._dense_ns())} expected"
        elif self.spec.num_cores <= _MAX_CORES_COMPARED:
            # Plans of entries are made for a power of two; of as many the others.
            among = next_power_of_two(self.batch_size), None, False, self.by_kernels
            ways = (way for cut in connected_cuts(self.spec) for way in ways_to_join(self.spec, cut, *among))
            others = sorted((way.cost_ns, _entries_name(way)) for way in ways)
        else:
            return
        rest = [f"{_time(ns)} for {name}" for ns, name in others if ns > self.plan.cost_ns][:_OTHERS]
        if rest:
            yield f"other ways: {'; '.join(rest)}"

    def _product_name(self, plan: ProductPlan) -> str:
        return f"{plan.order}, {self._slices(plan.joined)}" if plan.joined.slices else f"{plan.order}, at once"

    def _dense_ns(self) -> float:
        sizes = {**dict(self.spec.sizes), BATCH: self.batch_size}
        output = (BATCH, *(mode for mode in self.spec.modes if mode not in self.vectors_over))
        plan = plan_contraction(((BATCH, *self.vectors_over), self.spec.modes), output, tuple(sizes.items()))
        return cost_ns(contraction_work(plan, sizes))


def plan_evaluation(
    spec: NetworkSpec,
    batch_size: int,
    vectors_over: Sequence[str] = (),
    max_peak_bytes: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Evaluation:
    """See `NetworkSpec.plan`."""
    checked_size(batch_size, "batch_size")
    if isinstance(vectors_over, str):
        raise ArgumentError(
            "vectors_over", f"is the text {vectors_over!r}; give a sequence of modes, as [{vectors_over!r}]"
        )
    modes = tuple(vectors_over)
    if twice := [mode for mode in modes if modes.count(mode) > 1]:
        raise ArgumentError("vectors_over", f"has {twice[0]!r} twice; name each mode once")
    for mode in modes:
        if mode not in spec.modes:
            raise ArgumentError("vectors_over", f"has {mode!r}; the modes are {', '.join(spec.modes)}")
    ceiling = None if max_peak_bytes is None else checked_size(max_peak_bytes, "max_peak_bytes") // dtype.itemsize
    by_kernels = kernels.serve(dtype, torch.device("cpu"))
    plan: EntryPlan | ProductPlan
    if modes:
        plan = plan_product(spec, modes, batch_size, ceiling)
    else:
        plan = plan_entries(spec, batch_size, None, ceiling, by_kernels)
    if ceiling is not None and plan.peak_elements > ceiling:
        least = plan.peak_elements * dtype.itemsize
        raise ArgumentError("max_peak_bytes", f"is {max_peak_bytes} bytes; the least that would do is {least}")
    return Evaluation(spec, batch_size, modes, plan, dtype.itemsize, by_kernels)


def _entries_name(plan: EntryPlan) -> str:
    groups = " ".join(f"[{_named(group)}]" for group in plan.cut)
    if plan.slice_length is not None:
        return f"{groups}, {plan.slice_length:,} entries at a time"
    return f"{groups}, in one pass" if plan.fused else groups


def _named(cores: Sequence[int]) -> str:
    return ", ".join(map(str, cores))


def _steps(plan: ContractionPlan, names: Sequence[str]) -> str:
    remaining = list(names)
    steps = []
    for n, pair in enumerate(plan.pairs):
        a, b = (remaining[position] for position in sorted(pair.positions))
        remaining = [name for position, name in enumerate(remaining) if position not in pair.positions]
        last = n == len(plan.pairs) - 1
        steps.append(f"{a} x {b}" if last else f"{a} x {b} = ({n + 1})")
        remaining.append(f"({n + 1})")
    return "; ".join(steps)


def _time(nanoseconds: float) -> str:
    return f"{nanoseconds / 1e6:.3g} ms" if nanoseconds >= 1e6 else f"{nanoseconds / 1e3:.3g} us"


def _bytes(number: float) -> str:
    return f"{number / 2**20:.3g} MiB" if number >= 2**20 else f"{number / 2**10:.3g} KiB"
