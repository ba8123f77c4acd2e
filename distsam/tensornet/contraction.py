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
class ContractionPlan:
    """How to contract operands with these indices into the output.

    Args:
        operands: the indices of every operand.
        output: the indices of the result, in order; all others are summed over.
        pairs: positions to take out of the list of operands and contract; the result goes to its end.
        multiply_adds: multiplications of all pairs together.
        intermediates: number of elements of the result of every pair.
    """

    operands: tuple[Indices, ...]
    output: Indices
    pairs: tuple[tuple[int, int], ...]
    multiply_adds: int
    intermediates: tuple[int, ...]


@lru_cache(maxsize=4096)
def plan_contraction(
    operands: tuple[Indices, ...], output: Indices, sizes: tuple[tuple[str, int], ...]
) -> ContractionPlan:
    """The cheapest pairwise order (optimal to 4 operands, near to it above), with its cost."""
    size = dict(sizes)
    # Numbers in place of names: sets of strings iterate in an order that changes from process to process.
    number = {index: n for n, index in enumerate(dict.fromkeys(i for operand in operands for i in operand))}
    path: Iterable[tuple[int, ...]] = ()
    if len(operands) > 1:
        path = paths.auto(
            [frozenset(number[i] for i in operand) for operand in operands],
            frozenset(number[i] for i in output),
            {number[i]: size[i] for i in number},
        )
    pairs = tuple((min(pair), max(pair)) for pair in path)
    remaining, multiply_adds, intermediates = list(operands), 0, []
    for first, second in pairs:
        b, a = remaining.pop(second), remaining.pop(first)
        kept = _kept(remaining, output)
        result = tuple(i for i in dict.fromkeys(a + b) if i in kept)
        multiply_adds += prod(size[i] for i in {*a, *b})
        intermediates.append(prod(size[i] for i in result))
        remaining.append(result)
    return ContractionPlan(operands, output, pairs, multiply_adds, tuple(intermediates))


def contract(plan: ContractionPlan, tensors: Sequence[Tensor]) -> Tensor:
    """The contraction of `tensors` by `plan`, differentiable in each.

    Args:
        plan: what `plan_contraction` gave.
        tensors: one per operand, dims in the order of its indices; one dtype, one device.

    Returns:
        The result, dims in the order of `plan.output`; not always contiguous.
    """
    remaining = list(zip(tensors, plan.operands, strict=True))
    for first, second in plan.pairs:
        b, a = remaining.pop(second), remaining.pop(first)
        kept = _kept([indices for _, indices in remaining], plan.output)
        if _precedence(b[1], a[1], plan.output) < _precedence(a[1], b[1], plan.output):
            a, b = b, a
        remaining.append(_contract_pair(*a, *b, kept))
    ((tensor, indices),) = remaining
    tensor, indices = _sum_out(tensor, indices, set(plan.output))
    return tensor.permute([indices.index(i) for i in plan.output])


def _kept(remaining: Iterable[Indices], output: Indices) -> set[str]:
    return set(output).union(*remaining)


def _precedence(indices: Indices, other: Indices, output: Indices) -> int:
    # The operand that owns the output's leading index goes first, so that the last permute moves little.
    return min((output.index(i) for i in indices if i in output and i not in other), default=len(output))


def _contract_pair(
    a: Tensor, indices_a: Indices, b: Tensor, indices_b: Indices, kept: set[str]
) -> tuple[Tensor, Indices]:
    a, indices_a = _sum_out(a, indices_a, kept.union(indices_b))
    b, indices_b = _sum_out(b, indices_b, kept.union(indices_a))
    shared = tuple(i for i in indices_a if i in indices_b)
    batch = tuple(i for i in shared if i in kept)
    summed = tuple(i for i in shared if i not in kept)
    free_a = tuple(i for i in indices_a if i not in shared)
    free_b = tuple(i for i in indices_b if i not in shared)
    if not free_a and not free_b:
        return _sum_out(a * b.permute([indices_b.index(i) for i in indices_a]), indices_a, kept)
    if not summed:
        return _multiply(a, indices_a, b, indices_b)
    a_BFS = _grouped(a, indices_a, (batch, free_a, summed))
    b_BSF = _grouped(b, indices_b, (batch, summed, free_b))
    result = torch.mm(a_BFS[0], b_BSF[0]) if not batch else torch.bmm(a_BFS, b_BSF)
    dims = [a.shape[indices_a.index(i)] for i in batch + free_a]
    return result.view(*dims, *(b.shape[indices_b.index(i)] for i in free_b)), batch + free_a + free_b


def _sum_out(tensor: Tensor, indices: Indices, kept: set[str]) -> tuple[Tensor, Indices]:
    dims = [dim for dim, index in enumerate(indices) if index not in kept]
    return (tensor.sum(dims), tuple(i for i in indices if i in kept)) if dims else (tensor, indices)


def _multiply(a: Tensor, indices_a: Indices, b: Tensor, indices_b: Indices) -> tuple[Tensor, Indices]:
    result = indices_a + tuple(i for i in indices_b if i not in indices_a)
    a = a.reshape(*a.shape, *[1] * (len(result) - len(indices_a)))
    b = b.permute([indices_b.index(i) for i in result if i in indices_b])
    sizes = iter(b.shape)
    return a * b.reshape([next(sizes) if i in indices_b else 1 for i in result]), result


def _grouped(tensor: Tensor, indices: Indices, groups: Sequence[Indices]) -> Tensor:
    permuted = tensor.permute([indices.index(i) for group in groups for i in group])
    ends = list(accumulate(len(group) for group in groups))
    starts = [0, *ends[:-1]]
    return permuted.reshape([prod(permuted.shape[s:e]) for s, e in zip(starts, ends, strict=True)])
