"""Contract several tensors, two at a time, along a path that is found once.

Only plain torch operations run here (mul, sum, mm, bmm), in an order that this file fixes: the result depends
neither on torch's own use of opt_einsum nor on the hash seed of the process.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from math import prod

import torch
from opt_einsum import paths
from torch import Tensor

Indices = tuple[str, ...]


@dataclass(frozen=True)
class Pair:
    """One contraction of two tensors, a and b.

    Args:
        positions: of a and b in the list of remaining tensors; both are taken out, the result goes to its end.
        a, b: their indices.
        batch: indices of both that stay.
        free_a, free_b: indices of one alone; those that no other tensor has, nor the output, are summed out before.
        summed: indices of both that no other tensor has, nor the output.
    """

    positions: tuple[int, int]
    a: Indices
    b: Indices
    batch: Indices
    free_a: Indices
    free_b: Indices
    summed: Indices

    @property
    def result(self) -> Indices:
        """The indices of the result, in the order in which it is made."""
        return self.batch + self.free_a + self.free_b


@dataclass(frozen=True)
class ContractionPlan:
    """How to contract operands with these indices into the output.

    Args:
        operands: the indices of every operand.
        output: the indices of the result, in order; all others are summed over.
        pairs: what to do, in order.
        multiply_adds: multiplications of all pairs together.
        intermediates: number of elements of the result of every pair.
    """

    operands: tuple[Indices, ...]
    output: Indices
    pairs: tuple[Pair, ...]
    multiply_adds: int
    intermediates: tuple[int, ...]

    @property
    def natural_output(self) -> Indices:
        """The order in which the result is made; asking for it as output saves a copy."""
        made = self.pairs[-1].result if self.pairs else self.operands[0]
        return tuple(index for index in made if index in self.output)


@lru_cache(maxsize=4096)
def plan_contraction(
    operands: tuple[Indices, ...], output: Indices, sizes: tuple[tuple[str, int], ...]
) -> ContractionPlan:
    """The cheapest pairwise order (optimal to 4 operands, near to it above), with its cost."""
    size = dict(sizes)
    remaining, pairs = list(operands), []
    for first, second in _find_path(operands, output, size):
        b, a = remaining.pop(second), remaining.pop(first)
        pairs.append(_plan_pair((first, second), a, b, set(output).union(*remaining), output))
        remaining.append(pairs[-1].result)
    multiply_adds = sum(prod(size[i] for i in {*pair.a, *pair.b}) for pair in pairs)
    intermediates = tuple(prod(size[i] for i in pair.result) for pair in pairs)
    return ContractionPlan(operands, output, tuple(pairs), multiply_adds, intermediates)


def _find_path(operands: Sequence[Indices], output: Indices, size: dict[str, int]) -> list[tuple[int, int]]:
    if len(operands) == 1:
        return []
    # Numbers in place of names: sets of strings iterate in an order that changes from process to process.
    number = {index: n for n, index in enumerate(dict.fromkeys(i for operand in operands for i in operand))}
    path = paths.auto(
        [frozenset(number[i] for i in operand) for operand in operands],
        frozenset(number[i] for i in output),
        {number[i]: size[i] for i in number},
    )
    return [(min(positions), max(positions)) for positions in path]


def _plan_pair(positions: tuple[int, int], a: Indices, b: Indices, kept: set[str], output: Indices) -> Pair:
    # The operand that owns the output's leading index is "a", and free indices stand in the output's order: so the
    # small operands are permuted, and the large result seldom.
    place = {index: n for n, index in enumerate(output)}

    def ordered(indices: Iterable[str]) -> Indices:
        return tuple(sorted(indices, key=lambda i: place.get(i, len(place))))

    if min((place[i] for i in b if i in place and i not in a), default=len(place)) < min(
        (place[i] for i in a if i in place and i not in b), default=len(place)
    ):
        a, b, positions = b, a, (positions[1], positions[0])
    shared = [i for i in a if i in b]
    return Pair(
        positions,
        a,
        b,
        batch=ordered(i for i in shared if i in kept),
        free_a=ordered(i for i in a if i in kept and i not in b),
        free_b=ordered(i for i in b if i in kept and i not in a),
        summed=tuple(i for i in shared if i not in kept),
    )


def contract(plan: ContractionPlan, tensors: Sequence[Tensor]) -> Tensor:
    """The contraction of `tensors` by `plan`, differentiable in each.

    Args:
        plan: what `plan_contraction` gave; the sizes may differ from those it was made for.
        tensors: one per operand, dims in the order of its indices; one dtype, one device.

    Returns:
        The result, dims in the order of `plan.output`; not always contiguous.
    """
    remaining = list(tensors)
    for pair in plan.pairs:
        a, b = (remaining[position] for position in pair.positions)
        remaining = [t for n, t in enumerate(remaining) if n not in pair.positions]
        remaining.append(_contract_pair(pair, a, b))
    (tensor,) = remaining
    indices = plan.pairs[-1].result if plan.pairs else plan.operands[0]
    return _arranged(tensor, indices, [(index,) for index in plan.output])


def _contract_pair(pair: Pair, a: Tensor, b: Tensor) -> Tensor:
    sizes = dict(zip(pair.a + pair.b, a.shape + b.shape, strict=True))
    if not pair.summed or not (pair.free_a or pair.free_b):
        return _multiply(pair, a, b)
    a_BFS = _arranged(a, pair.a, (pair.batch, pair.free_a, pair.summed))
    b_BSF = _arranged(b, pair.b, (pair.batch, pair.summed, pair.free_b))
    result = torch.bmm(a_BFS, b_BSF) if pair.batch else torch.mm(a_BFS[0], b_BSF[0])
    # `result` is used here only, so this need not be a view of it: FSDP2 warns of a module that returns a view.
    return torch.ops.aten._unsafe_view(result, [sizes[index] for index in pair.result])


def _multiply(pair: Pair, a: Tensor, b: Tensor) -> Tensor:
    # The summed indices stand in front: the sum then adds whole slices.
    order = pair.summed + pair.result
    product = _broadcast(a, pair.a, order) * _broadcast(b, pair.b, order)
    return product.sum(list(range(len(pair.summed)))) if pair.summed else product


def _broadcast(tensor: Tensor, indices: Indices, order: Indices) -> Tensor:
    # Contiguous, because a product inherits the memory order of its factors, whatever its dims say.
    tensor = _arranged(tensor, indices, [(index,) for index in order if index in indices]).contiguous()
    for dim, index in enumerate(order):
        if index not in indices:
            tensor = tensor.unsqueeze(dim)
    return tensor


def _arranged(tensor: Tensor, indices: Indices, groups: Sequence[Indices]) -> Tensor:
    """The tensor with one dim per group, the product of its indices; indices in no group are summed out."""
    wanted = [index for group in groups for index in group]
    if alone := [dim for dim, index in enumerate(indices) if index not in wanted]:
        tensor = tensor.sum(alone)
        indices = tuple(index for index in indices if index in wanted)
    order = [indices.index(index) for index in wanted]
    if order != sorted(order):
        tensor = tensor.permute(order)
    if all(len(group) == 1 for group in groups):
        return tensor
    ends = list(accumulate(len(group) for group in groups))
    return tensor.reshape([prod(tensor.shape[s:e]) for s, e in zip([0, *ends[:-1]], ends, strict=True)])
