"""Evaluate a batch of entries by a plan: merge, gather, join."""

from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from math import prod
from typing import Any

import torch
from torch import Tensor

from distsam.tensornet.contraction import contract
from distsam.tensornet.kernels import halves, product_sum
from distsam.tensornet.planner import EntryPlan, GroupPlan, block_length
from distsam.tensornet.sliced import BATCH, contract_sliced
from distsam.tensornet.spec import NetworkSpec


def entries_of(plan: EntryPlan, spec: NetworkSpec, cores: Sequence[Tensor], indices: Tensor) -> Tensor:
    """The entries at `indices` by `plan`.

    Args:
        plan: a plan of this spec, made for any batch size.
        spec: what the cores are.
        cores: K tensors, one dtype and device.
        indices: (B, order) int64.

    Returns:
        values_B: (B,), of the dtype of the cores.

    Raises:
        IndexError: a position is outside its mode (on an accelerator torch's own assertion, without a wait).
    """
    checked = check_range(indices, spec.shape)
    values = entries_at(plan, spec, cores, dict(zip(spec.modes, checked.unbind(1), strict=True)))
    # Under autocast plans end in different dtypes.
    return values.to(cores[0].dtype)


def entries_at(plan: EntryPlan, spec: NetworkSpec, cores: Sequence[Tensor], positions: Mapping[str, Tensor]) -> Tensor:
    """The entries at these positions, which nobody looks at.

    Args:
        plan, spec, cores: as of `entries_of`.
        positions: (B,) int64 of each mode that the plan fixes.

    Returns:
        (B, *sizes of the modes that the plan does not fix).
    """
    # What is in another order than its core is copied once, and not row by row.
    tables = [contract(group.merge, [cores[k] for k in group.cores]).contiguous() for group in plan.groups]
    rows = [combined_rows(group, spec, positions) for group in plan.groups]
    if plan.is_product_sum:
        return product_sums(plan, tables, rows, cores[0].dtype)
    if plan.sliced is None or torch.compiler.is_compiling():
        return contract(plan.join, [take_rows(*item) for item in zip(plan.groups, tables, rows, strict=True)])
    return contract_sliced(plan.sliced, [_flat(*item) for item in zip(plan.groups, tables, strict=True)], rows)


def product_sums(
    plan: EntryPlan, tables: Sequence[Tensor], rows: Sequence[Tensor | None], dtype: torch.dtype
) -> Tensor:
    """(B,) values of a plan whose join is a product and a sum, from its tables and the row that each entry takes.

    Args:
        dtype: of the cores: autocast may have merged some tables in a lower one; all are gathered and summed in this.
    """
    if len(tables) == 1 and rows[0] is not None:
        return tables[0].to(dtype).reshape(-1).gather(0, rows[0])
    if plan.fused:
        laid_out = [_rows(*item).to(dtype) for item in zip(plan.groups, tables, strict=True)]
        result: Tensor = product_sum(laid_out, [row.contiguous() for row in rows if row is not None])
        return result
    columns = (_columns(*item).to(dtype) for item in zip(plan.groups, tables, strict=True))
    return _ProductSum.apply(*columns, *rows)


def _rows(group: GroupPlan, table: Tensor) -> Tensor:
    # (all rows, all bonds).
    num_modes = len(group.modes)
    return table.reshape(prod(table.shape[:num_modes]), prod(table.shape[num_modes:])).contiguous()


def _columns(group: GroupPlan, table: Tensor) -> Tensor:
    # (all bonds, all rows), every bond combination contiguous; one group alone has no bond left.
    num_modes = len(group.modes)
    # Both by number, because a table of no rows has no length to be found out.
    return table.reshape(prod(table.shape[:-num_modes]), prod(table.shape[-num_modes:])).contiguous()


def check_range(indices: Tensor, shape: Sequence[int]) -> Tensor:
    """The indices, if each is within its mode; see `mark_outside` for accelerators.

    Raises:
        IndexError: one is not.
    """
    if indices.device.type != "cpu":
        return mark_outside(indices, shape)
    if indices.numel():
        lowest, highest = (bound.tolist() for bound in torch.aminmax(indices, dim=0))
        for mode, (low, high, size) in enumerate(zip(lowest, highest, shape, strict=True)):
            if low < 0 or high >= size:
                wrong = low if low < 0 else high
                raise IndexError(f"indices[:, {mode}] holds {wrong}; mode {mode} has positions 0 to {size - 1}")
    return indices


def mark_outside(indices: Tensor, shape: Sequence[int]) -> Tensor:
    """The indices with -1 throughout an entry that has a position outside its mode, without a wait.

    A combined row of such an entry could fall back into the table; -1 is what torch's assertion refuses.
    """
    # Mode by mode: a tensor of the sizes would be copied to the device, and the host would wait.
    columns = zip(indices.unbind(1), shape, strict=True)
    outside = torch.stack([(column < 0) | (column >= size) for column, size in columns], 1)
    return torch.where(outside.any(1, keepdim=True), -1, indices)


def combined_rows(group: GroupPlan, spec: NetworkSpec, positions: Mapping[str, Tensor]) -> Tensor | None:
    """(B,) which row of the group's table each entry takes; None where every entry uses it all."""
    if not group.modes:
        return None
    return reduce(lambda row, mode: row * spec.size(mode) + positions[mode], group.modes[1:], positions[group.modes[0]])


def take_rows(group: GroupPlan, table: Tensor, rows: Tensor | None) -> Tensor:
    """The row of its table for each entry, with the batch in the place of the modes."""
    if rows is None:
        return table
    return _flat(group, table).index_select(group.gathered.index(BATCH), rows)


def _flat(group: GroupPlan, table: Tensor) -> Tensor:
    """The table with one dim for the positions of all its modes."""
    if not group.modes:
        return table
    first = group.merge.output.index(group.modes[0])
    return table.flatten(first, first + len(group.modes) - 1)


class _ProductSum(torch.autograd.Function):
    """values_B = sum over c of the product over tables of table[c, rows_B].

    Neither what is gathered nor its gradient exists for more than a block of c at a time: backward gathers again,
    which costs less than to write and read B x C numbers. gather and scatter_add add in a fixed order on CPU, unlike
    the backward of table[:, rows].
    """

    @staticmethod
    def forward(*tables_and_rows: Tensor) -> Tensor:
        tables, rows = halves(tables_and_rows)
        values = tables[0].new_zeros(rows[0].shape)
        for block in _blocks(tables[0], rows[0]):
            values += reduce(torch.mul, _gather_block(tables, rows, block)).sum(0)
        return values

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad_B: Tensor) -> tuple[Tensor | None, ...]:
        tables, rows = halves(ctx.saved_tensors)
        # Made of the gradient, so that torch.func.vmap, under which that is several, makes them several too.
        grads = [grad_B.new_zeros(table.shape) for table in tables]
        for block in _blocks(tables[0], rows[0]):
            gathered = _gather_block(tables, rows, block)
            for k, grad in enumerate(grads):
                others = reduce(torch.mul, gathered[:k] + gathered[k + 1 :], grad_B.expand_as(gathered[k]))
                grad[block].scatter_add_(1, rows[k].expand_as(others), others)
        return *grads, *[None] * len(rows)


def _blocks(table_CR: Tensor, rows_B: Tensor) -> Iterator[slice]:
    num_bonds, step = len(table_CR), block_length(rows_B.numel())
    return (slice(start, start + step) for start in range(0, num_bonds, step))


def _gather_block(tables: Sequence[Tensor], rows: Sequence[Tensor], block: slice) -> list[Tensor]:
    cut = [table[block] for table in tables]
    return [table.gather(1, row.expand(len(table), -1)) for table, row in zip(cut, rows, strict=True)]
