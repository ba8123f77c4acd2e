"""Contract a network of which each rank holds pieces of the cores, cut along bonds, or rows of one mode."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from distsam.sharding.local import piece_of
from distsam.sharding.meetings import (
    MULTIPLICATIONS_PER_ELEMENT,
    WHOLE,
    Held,
    MeetingPlan,
    Move,
    Sizes,
    plan_meetings,
)
from distsam.sharding.moves import AxisRanks, add_up, add_up_cut, cut, gather, scale_gradient, share
from distsam.tensornet import Cores, NetworkSpec, kernels
from distsam.tensornet.contraction import Indices, contract_pair, in_output_order
from distsam.tensornet.cost import NS_PER_MULTIPLY_ADD
from distsam.tensornet.entries import check_range, combined_rows, product_sums, take_rows
from distsam.tensornet.planner import EntryPlan, next_power_of_two, plan_cut, plan_entries
from distsam.tensornet.products import MultiplyPlans, RowsPlans, slices_of
from distsam.tensornet.sliced import BATCH

_NS_PER_ELEMENT = MULTIPLICATIONS_PER_ELEMENT * NS_PER_MULTIPLY_ADD


@dataclass(frozen=True)
class EntryMeetings:
    """How to evaluate entries: which cores are merged into tables, and what moves on the way.

    Args:
        plan: as one process would do it with cores as large as the pieces.
        merges: one a table.
        join: of the gathered rows; None where that is a product and a sum of tables of which every rank has all, or of
            pieces along one bond.
        moved_elements: that a rank sends, about, forward and backward.
    """

    plan: EntryPlan
    merges: tuple[MeetingPlan, ...]
    join: MeetingPlan | None
    moved_elements: int

    @property
    def cost_ns(self) -> float:
        """Of one rank, about."""
        return self.plan.cost_ns + _NS_PER_ELEMENT * self.moved_elements


class _SpecOfPieces(NetworkSpec):
    """Unchecked: beside a bond that is cut another may be larger than a tensor of these sizes could use."""

    def __post_init__(self) -> None:
        pass


@dataclass(frozen=True)
class Rows:
    """The rows of one mode that this rank holds; it is asked for entries in them alone.

    Args:
        mode: the index.
        start, stop: from where to where.
        ranks: that share the rows, and the data.
    """

    mode: str
    start: int
    stop: int
    ranks: AxisRanks


class CutCores:
    """The Contractor of a network whose cores are cut along bonds over the ranks of one axis, or one of them by rows
    over those of another.

    Ranks that share bonds call it with the same data, and get the same results; the gradient of whatever was whole on
    every one of them (the data, a core that is not cut) is then whole too. The gradient of rows is divided by the
    number of ranks that share them: it is complete, where other cores' gradients are still to be averaged.

    Args:
        spec: of the whole network.
        cuts: for every core the bond along which it is cut as torch.chunk cuts, or None.
        ranks: that share bonds.
        rows: of one mode that are here; None: all.

    Collectives: those that `plan_meetings` finds for the shapes of each call, forward and backward.
    """

    def __init__(
        self, spec: NetworkSpec, cuts: Sequence[str | None], ranks: AxisRanks, rows: Rows | None = None
    ) -> None:
        self._spec, self._ranks, self._rows = spec, ranks, rows
        self._held = tuple(Held(index) for index in cuts)
        here = {rows.mode: rows.stop - rows.start} if rows is not None else {}
        sizes = tuple((i, ranks.piece_length(n) if i in cuts else here.get(i, n)) for i, n in spec.sizes)
        self._local_spec = _SpecOfPieces(spec.format, spec.cores, spec.modes, sizes, spec.core_names)
        self._entry_plans: dict[tuple[int, bool], EntryMeetings] = {}

    def entries(self, cores: Cores, indices: Tensor) -> Tensor:
        """(B,) entries of T: cores are merged before rows are gathered where that is cheaper, as in one process."""
        pieces = self._pieces(cores)
        found = self.for_entries(next_power_of_two(len(indices)), kernels.serve(pieces[0].dtype, pieces[0].device))
        groups = found.plan.groups
        positions = self._positions(indices)
        tables = [
            self._contract(merge, [pieces[k] for k in group.cores]).contiguous()  # as in `entries_at`
            for merge, group in zip(found.merges, groups, strict=True)
        ]
        rows = [combined_rows(group, self._local_spec, positions) for group in groups]
        if found.join is not None:
            taken = [take_rows(*item) for item in zip(groups, tables, rows, strict=True)]
            return self._whole(found.join, self._contract(found.join, taken))
        if not _is_cut_alike(found.merges):
            tables = [self._whole(*item) for item in zip(found.merges, tables, strict=True)]
            return product_sums(found.plan, tables, rows, pieces[0].dtype)
        return add_up(product_sums(found.plan, tables, rows, pieces[0].dtype), self._ranks)

    def dense(self, cores: Cores) -> Tensor:
        """T."""
        plan = self._planned(self._spec.cores, self._spec.modes, self._spec.sizes, self._held)
        return self._whole(plan, self._contract(plan, self._with_all_rows(cores))).contiguous()

    def multiply(self, cores: Cores, vectors: Tensor, plans: MultiplyPlans) -> Tensor:
        """T as a linear map."""
        return self._on_batch(plans, len(vectors), [vectors, *self._with_all_rows(cores)], (WHOLE, *self._held))

    def rows(self, cores: Cores, positions: Tensor, plans: RowsPlans) -> Tensor:
        """Slices of T."""
        taken = slices_of(plans.modes, self._spec, self._with_all_rows(cores), positions)
        return self._on_batch(plans, len(positions), taken, self._held)

    def _on_batch(
        self, plans: MultiplyPlans | RowsPlans, num: int, tensors: list[Tensor], held: tuple[Held, ...]
    ) -> Tensor:
        plan = self._planned(plans.operands, plans.output, self._sizes(next_power_of_two(num)), held)
        return self._whole(plan, self._contract(plan, tensors)).contiguous()

    def _positions(self, indices: Tensor) -> dict[str, Tensor]:
        """Of each mode, within the rows that are here."""
        if self._rows is not None:
            offsets = [self._rows.start if mode == self._rows.mode else 0 for mode in self._spec.modes]
            indices = indices - indices.new_tensor(offsets)
        checked = check_range(indices, self._local_spec.shape)
        return dict(zip(self._spec.modes, checked.unbind(1), strict=True))

    def _pieces(self, cores: Cores) -> list[Tensor]:
        local = [piece_of(core) for core in cores]
        if (rows := self._rows) is None:
            return local
        return [
            scale_gradient(piece, 1 / rows.ranks.size) if rows.mode in core else piece
            for core, piece in zip(self._spec.cores, local, strict=True)
        ]

    def _with_all_rows(self, cores: Cores) -> list[Tensor]:
        """The pieces, but all rows where only some are here."""
        if (rows := self._rows) is None:
            return self._pieces(cores)
        return [
            self._all_rows(piece, core.index(rows.mode), rows) if rows.mode in core else piece
            for core, piece in zip(self._spec.cores, self._pieces(cores), strict=True)
        ]

    def _all_rows(self, piece: Tensor, dim: int, rows: Rows) -> Tensor:
        above, below = (list(piece.shape) for _ in range(2))
        above[dim], below[dim] = rows.start, self._spec.size(rows.mode) - rows.stop
        padded = torch.cat([piece.new_zeros(above), piece, piece.new_zeros(below)], dim)
        return share(add_up(padded, rows.ranks), rows.ranks)

    def _sizes(self, batch_size: int) -> Sizes:
        return (*self._spec.sizes, (BATCH, batch_size))

    def _planned(
        self, operands: tuple[Indices, ...], output: Indices, sizes: Sizes, held: tuple[Held, ...]
    ) -> MeetingPlan:
        return plan_meetings(operands, output, sizes, held, self._ranks.size)

    def for_entries(self, batch_size: int, fused: bool = False) -> EntryMeetings:
        """For so many entries the cheaper of what one process would do with cores as large as the pieces, and of no
        merging at all."""
        key = batch_size, fused
        if key not in self._entry_plans:
            spec = self._local_spec
            alone = plan_cut(spec, tuple((k,) for k in range(spec.num_cores)), batch_size)
            found = [self._priced(plan, batch_size) for plan in (plan_entries(spec, batch_size, fused=fused), alone)]
            self._entry_plans[key] = min(found, key=lambda plan: plan.cost_ns)
        return self._entry_plans[key]

    def _priced(self, plan: EntryPlan, batch_size: int) -> EntryMeetings:
        sizes = self._sizes(batch_size)
        merges = tuple(
            plan_meetings(
                g.merge.operands,
                g.merge.output,
                sizes,
                tuple(self._held[k] for k in g.cores),
                self._ranks.size,
                must_be_whole=False,
            )
            for g in plan.groups
        )
        join, moved = None, 0
        if not plan.is_product_sum:
            join = self._planned(plan.join.operands, plan.join.output, sizes, tuple(merge.held for merge in merges))
            moved = join.moved_elements
        elif not _is_cut_alike(merges):
            size = dict(sizes)
            tables = zip(plan.groups, merges, strict=True)
            moved = sum(2 * prod(size[i] for i in g.merge.output) for g, merge in tables if merge.held != WHOLE)
        moved += sum(merge.moved_elements for merge in merges)
        return EntryMeetings(plan, merges, join, moved)

    def _contract(self, plan: MeetingPlan, tensors: Sequence[Tensor]) -> Tensor:
        """What `plan` makes of the tensors; held by the ranks as `plan.held` says."""
        remaining = list(tensors)
        for meeting in plan.meetings:
            pair = meeting.pair
            a, b = (
                self._moved(remaining[position], indices, moves)
                for position, indices, moves in zip(pair.positions, (pair.a, pair.b), meeting.moves, strict=True)
            )
            remaining = [t for n, t in enumerate(remaining) if n not in pair.positions]
            remaining.append(contract_pair(pair, a, b))
        (tensor,) = remaining
        return in_output_order(plan.plan, tensor)

    def _moved(self, tensor: Tensor, indices: Indices, moves: Sequence[tuple[Move, str | None]]) -> Tensor:
        ranks = self._ranks
        for move, index in moves:
            match move:
                case Move.ADD_UP:
                    tensor = add_up(tensor, ranks)
                case Move.SHARE:
                    tensor = share(tensor, ranks)
                case Move.CUT:
                    tensor = cut(tensor, _dim(indices, index), ranks)
                case Move.ADD_UP_CUT:
                    tensor = add_up_cut(tensor, _dim(indices, index), ranks)
                case Move.GATHER:
                    tensor = self._gathered(tensor, indices, index)
        return tensor

    def _whole(self, plan: MeetingPlan, tensor: Tensor) -> Tensor:
        if plan.held.is_partial:
            return add_up(tensor, self._ranks)
        return tensor if plan.held.cut is None else self._gathered(tensor, plan.plan.output, plan.held.cut)

    def _gathered(self, tensor: Tensor, indices: Indices, index: str | None) -> Tensor:
        assert index is not None
        return gather(tensor, _dim(indices, index), self._spec.size(index), self._ranks)


def _dim(indices: Indices, index: str | None) -> int:
    assert index is not None
    return indices.index(index)


def _is_cut_alike(merges: Sequence[MeetingPlan]) -> bool:
    """True if all tables are pieces along one and the same bond."""
    cuts = {merge.held.cut for merge in merges}
    return len(cuts) == 1 and None not in cuts
