"""Contract several tensors, two at a time, along a path that is found once.

Only plain torch operations run here (mul, sum, mm, bmm), in an order that this file fixes: the result depends
neither on torch's own use of opt_einsum nor on the hash seed of the process.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from heapq import heappop, heappush
from itertools import accumulate
from itertools import pairwise as neighbours
from math import prod

import torch
from opt_einsum import paths
from torch import Tensor

Indices = tuple[str, ...]

# Up to so many operands the search finds the best order or one close to it; up to so many it takes no seconds.
MAX_OPTIMAL = 12
MAX_SEARCHED = 64


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


Pairwise = Callable[[Pair, Tensor, Tensor], Tensor]


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
    """The cheapest pairwise order (optimal to 4 operands, near to it above, along the chain of many), with its cost."""
    size = dict(sizes)
    plans = [_plan_along(path, operands, output, size) for path in _find_paths(operands, output, size)]
    return min(plans, key=lambda plan: plan.multiply_adds)


def plan_along(
    path: Sequence[tuple[int, int]], operands: tuple[Indices, ...], output: Indices, sizes: tuple[tuple[str, int], ...]
) -> ContractionPlan:
    """The plan that takes the two tensors at these positions (the lower first) out of those that remain, again and
    again, and puts the result at the end."""
    return _plan_along(path, operands, output, dict(sizes))


def contiguous(operands: Sequence[Indices]) -> list[int]:
    """An order in which each operand shares an index with those before it, wherever one does; the lowest number first,
    so that neighbours stay."""
    carriers: dict[str, list[int]] = {}
    for k, operand in enumerate(operands):
        for index in operand:
            carriers.setdefault(index, []).append(k)
    order: dict[int, None] = {}
    for start in range(len(operands)):
        waiting = [start]
        while waiting:
            k = heappop(waiting)
            if k in order:
                continue
            order[k] = None
            # An index is looked up once: that of a batch is in every operand.
            for j in {j for index in operands[k] for j in carriers.pop(index, ())}.difference(order):
                heappush(waiting, j)
    return list(order)


def _plan_along(
    path: Sequence[tuple[int, int]], operands: tuple[Indices, ...], output: Indices, size: dict[str, int]
) -> ContractionPlan:
    remaining, pairs = list(operands), list[Pair]()
    uses = Counter(index for operand in (*operands, output) for index in operand)
    for first, second in path:
        b, a = remaining.pop(second), remaining.pop(first)
        uses.subtract((*a, *b))
        pairs.append(plan_pair((first, second), a, b, {i for i in (*a, *b) if uses[i] > 0}, output))
        remaining.append(pairs[-1].result)
        uses.update(pairs[-1].result)
    multiply_adds = sum(prod(size[i] for i in {*pair.a, *pair.b}) for pair in pairs)
    intermediates = tuple(prod(size[i] for i in pair.result) for pair in pairs)
    return ContractionPlan(operands, output, tuple(pairs), multiply_adds, intermediates)


def _find_paths(
    operands: Sequence[Indices], output: Indices, size: dict[str, int]
) -> Iterator[Sequence[tuple[int, int]]]:
    """Of many operands the path along the chain, and of so many that a search would take seconds that one alone."""
    if len(operands) > MAX_OPTIMAL:
        yield _path_along(contiguous(operands))
    if len(operands) <= MAX_SEARCHED:
        yield _searched_path(operands, output, size)


def _path_along(order: Sequence[int]) -> list[tuple[int, int]]:
    """Operand by operand onto the result, which is the last of those that remain."""
    left = list(range(len(order)))
    first = sorted((left.index(order[0]), left.index(order[1])))
    path = [(first[0], first[1])]
    for k in sorted(first, reverse=True):
        del left[k]
    for k in order[2:]:
        place = bisect_left(left, k)
        path.append((place, len(left)))
        del left[place]
    return path


def _searched_path(operands: Sequence[Indices], output: Indices, size: dict[str, int]) -> list[tuple[int, int]]:
    if len(operands) == 1:
        return []
    # Numbers in place of names: sets of strings iterate in an order that changes from process to process. And groups of
    # cores that differ only in names have one path, which is searched once.
    number = {index: n for n, index in enumerate(dict.fromkeys(i for operand in operands for i in operand))}
    numbered = tuple(tuple(number[i] for i in operand) for operand in operands)
    return _path_of_numbers(numbered, tuple(number[i] for i in output), tuple(size[i] for i in number))


@lru_cache(maxsize=4096)
def _path_of_numbers(
    operands: tuple[tuple[int, ...], ...], output: tuple[int, ...], sizes: tuple[int, ...]
) -> list[tuple[int, int]]:
    path = paths.auto([*map(frozenset, operands)], frozenset(output), dict(enumerate(sizes)))
    return [(min(positions), max(positions)) for positions in path]


def plan_pair(positions: tuple[int, int], a: Indices, b: Indices, kept: set[str], output: Indices) -> Pair:
    """The contraction of two tensors with these indices.

    Args:
        positions: of both among the tensors that remain.
        a, b: their indices.
        kept: indices that the result has.
        output: an order of indices in which the result is wanted in the end.
    """
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


def contract(plan: ContractionPlan, tensors: Sequence[Tensor], pairwise: Pairwise | None = None) -> Tensor:
    """The contraction of `tensors` by `plan`, differentiable in each.

    Args:
        plan: what `plan_contraction` gave; the sizes may differ from those it was made for.
        tensors: one per operand, dims in the order of its indices; one dtype, one device.
        pairwise: contracts each pair; None: `contract_pair`.

    Returns:
        The result, dims in the order of `plan.output`; not always contiguous.
    """
    remaining = list(tensors)
    pairwise = pairwise or contract_pair
    for pair in plan.pairs:
        a, b = (remaining[position] for position in pair.positions)
        remaining = [t for n, t in enumerate(remaining) if n not in pair.positions]
        remaining.append(pairwise(pair, a, b))
    (tensor,) = remaining
    return in_output_order(plan, tensor)


def in_output_order(plan: ContractionPlan, tensor: Tensor) -> Tensor:
    """What the last pair of `plan` made, dims in the order of its output; a lone operand's other indices are summed."""
    indices = plan.pairs[-1].result if plan.pairs else plan.operands[0]
    return arranged(tensor, indices, [(index,) for index in plan.output])


def contract_pair(pair: Pair, a: Tensor, b: Tensor) -> Tensor:
    """The result of one pair; dims of `a` and `b` as the pair names them."""
    sizes = dict(zip(pair.a + pair.b, a.shape + b.shape, strict=True))
    if not pair.summed or not (pair.free_a or pair.free_b):
        return _multiply(pair, a, b)
    a_BFS = _matrices(a, pair.a, pair.batch, pair.free_a, pair.summed)
    b_BSF = _matrices(b, pair.b, pair.batch, pair.summed, pair.free_b)
    result = torch.bmm(a_BFS, b_BSF) if pair.batch else torch.mm(a_BFS, b_BSF)
    # `result` is used here only, so this need not be a view of it: FSDP2 warns of a module that returns a view.
    return torch.ops.aten._unsafe_view(result, [sizes[index] for index in pair.result])


def _matrices(tensor: Tensor, indices: Indices, batch: Indices, rows: Indices, columns: Indices) -> Tensor:
    """(batch, rows, columns), or without a batch (rows, columns), of memory in that order or with rows and columns
    exchanged, which products take as well: so that what lies side by side stays side by side where a copy has to be
    made."""
    first = (batch,) if batch else ()
    if lies_turned(tensor.stride(), indices, rows, columns):
        return arranged(tensor, indices, (*first, columns, rows)).mT
    return arranged(tensor, indices, (*first, rows, columns))


def lies_turned(strides: Sequence[int], indices: Indices, rows: Indices, columns: Indices) -> bool:
    """Whether rows, and no columns, are innermost in memory."""
    innermost = [index for index, stride in zip(indices, strides, strict=True) if stride == 1]
    return any(index in rows for index in innermost) and not any(index in columns for index in innermost)


def _multiply(pair: Pair, a: Tensor, b: Tensor) -> Tensor:
    # With the summed indices in front the sum adds whole slices; where they lie innermost, they stay there.
    order = pair.result + pair.summed if pair.a[-1:] == pair.summed[-1:] else pair.summed + pair.result
    product = _broadcast(a, pair.a, order) * _broadcast(b, pair.b, order)
    return product.sum([order.index(index) for index in pair.summed]) if pair.summed else product


def _broadcast(tensor: Tensor, indices: Indices, order: Indices) -> Tensor:
    # Contiguous, because a product inherits the memory order of its factors, whatever its dims say.
    tensor = arranged(tensor, indices, [(index,) for index in order if index in indices]).contiguous()
    for dim, index in enumerate(order):
        if index not in indices:
            tensor = tensor.unsqueeze(dim)
    return tensor


def arranged(tensor: Tensor, indices: Indices, groups: Sequence[Indices]) -> Tensor:
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


def is_joined(sizes: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether dims of these sizes and strides are one without a copy."""
    dims = [dim for dim, size in enumerate(sizes) if size > 1]
    return all(strides[d] == strides[e] * sizes[e] for d, e in neighbours(dims))
