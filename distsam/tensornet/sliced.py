"""Contract in slices of some indices, and again in backward: no more of the tensors in between than a slice exists.

A tensor that is made, used and forgotten while it lies in the cache costs less than to write it to memory, keep it
and read it back in backward, even where it has to be made twice; and a slice is what fits under a ceiling of memory.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from typing import Any

import torch
from torch import Tensor

from distsam.tensornet.contraction import ContractionPlan, Indices, Pair, Pairwise, contract, contract_pair, plan_pair
from distsam.tensornet.kernels import halves
from distsam.tensornet.room import Room, are_several

# The index of the batch in contractions; no index of a spec can be called so.
BATCH = "*"

# Index -> from where, and how many.
Where = dict[str, tuple[int, int]]


@dataclass(frozen=True)
class SlicedPlan:
    """A contraction and the pieces in which it runs.

    Args:
        plan: of the whole.
        slices: (index, length) of the indices that are cut, outermost first.
        gathered: for every operand, whether it is a table of which each of the batch takes a row: it has its rows
            where the plan has the batch.
    """

    plan: ContractionPlan
    slices: tuple[tuple[str, int], ...]
    gathered: tuple[bool, ...]

    def is_whole(self, indices: Indices) -> bool:
        """Whether each number of a tensor with these indices is in one slice alone."""
        return all(index in indices for index, _ in self.slices)


def contract_sliced(sliced: SlicedPlan, tensors: Sequence[Tensor], rows: Sequence[Tensor | None]) -> Tensor:
    """The contraction of `tensors`, differentiable in each, again and again.

    Args:
        sliced: how; the sizes may differ from those it was made for.
        tensors: one per operand, of one dtype and device.
        rows: (B,) int64, for operands that are gathered; None for others.

    Returns:
        The result, dims in the order of the plan's output.
    """
    device = tensors[0].device.type
    if torch.is_autocast_enabled(device):
        lower = torch.get_autocast_dtype(device)
        # All at once: what autocast does call by call would be undone in backward, which runs outside of it.
        tensors = [tensor.to(lower) for tensor in tensors]
    with torch.autocast(device, enabled=False):
        result: Tensor = _Sliced.apply(sliced, *tensors, *rows)
    return result


class _Sliced(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(sliced: SlicedPlan, *tensors_and_rows: Tensor) -> Tensor:
        plan, (tensors, rows) = sliced.plan, halves(tensors_and_rows)
        sizes = _sizes(sliced, tensors, rows)
        result, room = None, _room_where_allowed(tensors)
        pairwise = contract_pair if room is None else room.contract_pair
        for where in _pieces(sliced, sizes):
            if room is not None:
                room.again()
            part = contract(plan, _cut_all(sliced, tensors, rows, where, room), pairwise)
            if result is None:
                result = _result_like(part, [sizes[index] for index in plan.output], sliced.is_whole(plan.output))
            _put(sliced, _cut(result, plan.output, where), plan.output, part)
        assert result is not None
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.sliced = inputs[0]
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        sliced, (tensors, rows) = ctx.sliced, halves(ctx.saved_tensors)
        needs = ctx.needs_input_grad[1 : len(tensors) + 1]
        # Made of the gradient, so that torch.func.vmap, under which that is several, makes them several too.
        grads = [
            _result_like(grad, tensor.shape, row is None and sliced.is_whole(indices)) if is_needed else None
            for tensor, row, indices, is_needed in zip(tensors, rows, sliced.plan.operands, needs, strict=True)
        ]
        room = _room_where_allowed([grad, *tensors])
        for where in _pieces(sliced, _sizes(sliced, tensors, rows)):
            if room is not None:
                room.again()
            parts = _cut_all(sliced, tensors, rows, where, room)
            found = gradients(sliced.plan, parts, _cut(grad, sliced.plan.output, where), needs, room)
            for k, part in enumerate(found):
                if part is not None:
                    _add_part(sliced, k, grads[k], rows[k], where, part)
        return None, *grads, *[None] * len(rows)


def _room_where_allowed(tensors: Sequence[Tensor]) -> Room | None:
    """None where slices are to be differentiated, or are several at a time: what they make must then be their own."""
    return None if torch.is_grad_enabled() or are_several(tensors) else Room()


def _add_part(sliced: SlicedPlan, k: int, grad: Any, rows: Tensor | None, where: Where, part: Tensor) -> None:
    indices = sliced.plan.operands[k]
    if rows is None:
        _put(sliced, _cut(grad, indices, where), indices, part)
    else:
        rest = {index: place for index, place in where.items() if index != BATCH}
        _cut(grad, indices, rest).index_add_(indices.index(BATCH), _cut(rows, (BATCH,), where), part)


def _result_like(like: Tensor, shape: Sequence[int], is_whole: bool) -> Tensor:
    """For what slices give: numbers that are set once need no zeros."""
    return like.new_empty(shape) if is_whole else like.new_zeros(shape)


def _put(sliced: SlicedPlan, place: Tensor, indices: Indices, part: Tensor) -> None:
    if sliced.is_whole(indices):
        place.copy_(part)
    else:
        place.add_(part)


def _sizes(sliced: SlicedPlan, tensors: Sequence[Tensor], rows: Sequence[Tensor | None]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for indices, tensor, row in zip(sliced.plan.operands, tensors, rows, strict=True):
        sizes.update(zip(indices, tensor.shape, strict=True) if row is None else ())
        if row is not None:
            sizes.update((i, n) for i, n in zip(indices, tensor.shape, strict=True) if i != BATCH)
            sizes[BATCH] = len(row)
    return sizes


def _pieces(sliced: SlicedPlan, sizes: dict[str, int]) -> Iterator[Where]:
    """Every piece; of an index of no length one that is empty."""
    names = [index for index, _ in sliced.slices]
    ranges = [
        [(start, min(length, sizes[index] - start)) for start in range(0, max(sizes[index], 1), length)]
        for index, length in sliced.slices
    ]
    return (dict(zip(names, places, strict=True)) for places in product(*ranges))


def _cut(tensor: Tensor, indices: Indices, where: Where) -> Tensor:
    for index, (start, length) in where.items():
        if index in indices:
            tensor = tensor.narrow(indices.index(index), start, length)
    return tensor


def _cut_all(
    sliced: SlicedPlan, tensors: Sequence[Tensor], rows: Sequence[Tensor | None], where: Where, room: Room | None
) -> list[Tensor]:
    parts = []
    for indices, tensor, row in zip(sliced.plan.operands, tensors, rows, strict=True):
        if row is None:
            parts.append(_cut(tensor, indices, where))
            continue
        rest = {index: place for index, place in where.items() if index != BATCH}
        taken, cut, dim = _cut(row, (BATCH,), where), _cut(tensor, indices, rest), indices.index(BATCH)
        parts.append((torch if room is None else room).index_select(cut, dim, taken))
    return parts


def gradients(
    plan: ContractionPlan, tensors: Sequence[Tensor], grad: Tensor, needs: Sequence[bool], room: Room | None = None
) -> list[Tensor | None]:
    """The gradient of every operand that needs one, by the pairs of `plan` in reverse: each takes two contractions of
    the size of its own.

    Args:
        plan: of the forward pass; all but its last pair run again.
        tensors: the operands.
        grad: of the result, dims in the order of the plan's output.
        needs: for every operand, whether its gradient is wanted.
        room: where all is made; None: in fresh memory, differentiably.
    """
    pairwise: Pairwise = contract_pair if room is None else room.contract_pair
    places = node_places(plan)
    nodes = list(tensors)
    needed = list(needs)
    for pair, (a, b) in zip(plan.pairs, places, strict=True):
        needed.append(needed[a] or needed[b])
        if len(nodes) < len(tensors) + len(plan.pairs) - 1:
            nodes.append(pairwise(pair, nodes[a], nodes[b]))
    last = plan.pairs[-1].result if plan.pairs else plan.operands[0]
    shape = [] if plan.pairs else list(tensors[0].shape)
    found: list[Tensor | None] = [None] * len(needed)
    found[-1] = _in_order(grad, plan.output, last, dict(zip(last, shape, strict=False)))
    for n in reversed(range(len(plan.pairs))):
        above = found.pop()
        nodes = nodes[: len(tensors) + n]
        pair, (a, b) = plan.pairs[n], places[n]
        if above is not None:
            toward_a, toward_b = gradient_pairs(pair)
            if needed[a] and needed[b] and n < len(plan.pairs) - 1:
                # Copied once, and not in both contractions.
                above = above.contiguous() if room is None else room.contiguous(above)
            if needed[a]:
                found[a] = _gradient(toward_a, pair.a, above, nodes[b], nodes[a], pairwise)
            if needed[b]:
                found[b] = _gradient(toward_b, pair.b, above, nodes[a], nodes[b], pairwise)
    return found


def _gradient(pair: Pair, indices: Indices, above: Tensor, other: Tensor, own: Tensor, pairwise: Pairwise) -> Tensor:
    first, second = (above, other) if pair.positions == (0, 1) else (other, above)
    sizes = dict(zip(indices, own.shape, strict=True))
    return _in_order(pairwise(pair, first, second), pair.result, indices, sizes)


def _in_order(tensor: Tensor, given: Indices, wanted: Indices, sizes: dict[str, int]) -> Tensor:
    """Dims as wanted; along an index that was summed out alone, every place has the same gradient."""
    if given == wanted:
        return tensor
    tensor = tensor.permute([given.index(index) for index in wanted if index in given])
    if tensor.dim() == len(wanted):
        return tensor
    for dim, index in enumerate(wanted):
        if index not in given:
            tensor = tensor.unsqueeze(dim)
    return tensor.expand([sizes.get(index, -1) for index in wanted])


@lru_cache(maxsize=4096)
def gradient_pairs(pair: Pair) -> tuple[Pair, Pair]:
    """The contractions of the result's gradient with the other operand: first toward `pair.a`, then toward `pair.b`."""
    return _toward(pair.a, pair.result, pair.b), _toward(pair.b, pair.result, pair.a)


def _toward(wanted: Indices, above: Indices, other: Indices) -> Pair:
    """Indices stay in the order in which the operands have them, above all the gradient, which is larger: so it is not
    copied. The operand that has the first of those wanted goes first."""
    batch = tuple(i for i in above if i in wanted and i in other)
    of_above, of_other = (tuple(i for i in own if i in wanted and i not in batch) for own in (above, other))
    first = next((i for i in wanted if i not in batch), None)
    free = of_other + of_above if first in of_other else of_above + of_other
    pair = plan_pair((0, 1), above, other, set(wanted), batch + free)
    return replace(pair, summed=tuple(i for i in above if i in pair.summed))


@lru_cache(maxsize=4096)
def room_elements(sliced: SlicedPlan, sizes: tuple[tuple[str, int], ...]) -> int:
    """Elements that backward holds for its slices, all of them together: each kind of slice is gone through once, on
    torch's meta device, where tensors have shapes and no numbers. Forward holds less.

    Args:
        sliced: the plan.
        sizes: of every index, and of the batch.
    """
    size = dict(sizes)
    plan, room = sliced.plan, Room()
    *tensors, grad = (
        torch.empty([size[index] for index in indices], device="meta") for indices in (*plan.operands, plan.output)
    )
    rows = [torch.empty(size[BATCH], dtype=torch.int64, device="meta") if g else None for g in sliced.gathered]
    first_and_last = [
        {(0, min(n, size[i])), (last := (size[i] - 1) // n * n, size[i] - last)} for i, n in sliced.slices
    ]
    for places in product(*first_and_last):
        where = {index: place for (index, _), place in zip(sliced.slices, places, strict=True)}
        room.again()
        parts = _cut_all(sliced, tensors, rows, where, room)
        gradients(plan, parts, _cut(grad, plan.output, where), [True] * len(parts), room)
    return room.num_elements


@lru_cache(maxsize=4096)
def node_places(plan: ContractionPlan) -> tuple[tuple[int, int], ...]:
    """For every pair the numbers of its a and b: operands count from 0, results go on where they end."""
    remaining, places = list(range(len(plan.operands))), []
    for n, pair in enumerate(plan.pairs):
        a, b = (remaining[position] for position in pair.positions)
        remaining = [node for node in remaining if node not in (a, b)] + [len(plan.operands) + n]
        places.append((a, b))
    return tuple(places)
