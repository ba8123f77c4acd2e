"""Evaluate a batch of entries by a plan: merge, gather, join."""

from collections.abc import Mapping, Sequence
from functools import reduce

import torch
from torch import Tensor

from distsam.tensornet.contraction import contract
from distsam.tensornet.planner import EntryPlan, GroupPlan
from distsam.tensornet.spec import NetworkSpec


def entries_of(plan: EntryPlan, spec: NetworkSpec, cores: Sequence[Tensor], indices: Tensor) -> Tensor:
    """The entries at `indices` by `plan`.

    Args:
        plan: a plan of this spec, made for any batch size.
        spec: what the cores are.
        cores: K tensors, one dtype and device.
        indices: (B, order) int64.

    Returns:
        values_B: (B,).

    Raises:
        IndexError: a position is outside its mode (on an accelerator torch's own assertion, without a wait).
    """
    checked = _check_range(indices, spec.shape)
    positions = dict(zip(spec.modes, checked.unbind(1), strict=True))
    gathered = [
        _gather(group, spec, [cores[k] for k in group.cores], positions, plan.batch_last) for group in plan.groups
    ]
    return contract(plan.join, gathered)


def _check_range(indices: Tensor, shape: Sequence[int]) -> Tensor:
    sizes = torch.tensor(shape, device=indices.device)
    if indices.device.type != "cpu":
        # A combined row could fall back into the table: such entries get a row that torch's assertion refuses.
        outside = ((indices < 0) | (indices >= sizes)).any(1, keepdim=True)
        return torch.where(outside, -1, indices)
    if indices.numel():
        lowest, highest = torch.aminmax(indices, dim=0)
        for mode, (low, high, size) in enumerate(zip(lowest.tolist(), highest.tolist(), shape, strict=True)):
            if low < 0 or high >= size:
                wrong = low if low < 0 else high
                raise IndexError(f"indices[:, {mode}] holds {wrong}; mode {mode} has positions 0 to {size - 1}")
    return indices


def _gather(
    group: GroupPlan, spec: NetworkSpec, cores: Sequence[Tensor], positions: Mapping[str, Tensor], batch_last: bool
) -> Tensor:
    table = contract(group.merge, cores)
    if not group.modes:
        return table
    first = group.merge.output.index(group.modes[0])
    table = table.flatten(first, first + len(group.modes) - 1)
    rows = reduce(lambda row, mode: row * spec.size(mode) + positions[mode], group.modes[1:], positions[group.modes[0]])
    if batch_last:
        # gather's backward (scatter_add) adds in a fixed order on CPU; that of table[:, rows] does not.
        return table.gather(-1, rows.expand(*table.shape[:-1], -1))
    return table.index_select(first, rows)
