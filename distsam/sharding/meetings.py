"""In which order tensors are contracted that ranks hold in pieces, and what has to move before two of them meet.

Along the axis a tensor is whole, cut along one index, or partial (see `moves`). Two pieces of one index meet without a
word; their product, once the index is summed over, is partial, and is added up only where it must be: what is linear in
it may come before. Every order that is looked at is priced by its multiplications and by the elements that move.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from math import prod

from distsam.tensornet.contraction import (
    ContractionPlan,
    Indices,
    Pair,
    contiguous,
    plan_along,
    plan_contraction,
)

# An element that moves takes as long as so many multiplications: 4 bytes at 1 to 450 GB/s beside 10 to 10^5 billion
# multiplications a second give 40 on two processes of one CPU and 900 on GPUs that are joined by NVLink.
MULTIPLICATIONS_PER_ELEMENT = 200

Sizes = tuple[tuple[str, int], ...]


class Move(Enum):
    """What is done to a tensor before it meets another; the functions of `moves` by these names."""

    ADD_UP = "add up"
    SHARE = "share"
    CUT = "cut"
    GATHER = "gather"
    ADD_UP_CUT = "add up and cut"


@dataclass(frozen=True)
class Held:
    """How the ranks of an axis hold a tensor; whole unless it is said otherwise.

    Args:
        cut: the index along which each rank has a piece.
        is_partial: the sum over the ranks is the tensor.
    """

    cut: str | None = None
    is_partial: bool = False


WHOLE = Held()


@dataclass(frozen=True)
class Meeting:
    """One pair, and what happens to its two tensors before.

    Args:
        pair: what is contracted.
        moves: (move, index that it is along) of a, and of b, in order.
        held: how the result is held.
    """

    pair: Pair
    moves: tuple[tuple[tuple[Move, str | None], ...], tuple[tuple[Move, str | None], ...]]
    held: Held


@dataclass(frozen=True)
class MeetingPlan:
    """How to contract operands that are held so.

    Args:
        plan: the order.
        meetings: one for each pair of it.
        held: how the result is held.
        multiply_adds: of one rank, forward.
        moved_elements: that a rank sends, about, forward and backward.
    """

    plan: ContractionPlan
    meetings: tuple[Meeting, ...]
    held: Held
    multiply_adds: int
    moved_elements: int

    @property
    def cost(self) -> float:
        """In multiplications."""
        return 3 * self.multiply_adds + MULTIPLICATIONS_PER_ELEMENT * self.moved_elements


@lru_cache(maxsize=4096)
def plan_meetings(
    operands: tuple[Indices, ...],
    output: Indices,
    sizes: Sizes,
    held: tuple[Held, ...],
    num_ranks: int,
    *,
    must_be_whole: bool = True,
) -> MeetingPlan:
    """The cheapest of several orders.

    Args:
        operands: the indices of every operand.
        output: the indices of the result, in order.
        sizes: (index, size) of whole indices.
        held: of every operand.
        num_ranks: along the axis.
        must_be_whole: the price includes what makes the result whole.
    """
    cuts = {h.cut for h in held}
    local = tuple((index, -(-size // num_ranks) if index in cuts else size) for index, size in sizes)
    plans = dict.fromkeys(_orders(operands, output, local, held))
    found = (_Walk(sizes).along(plan, held, must_be_whole) for plan in plans)
    return min(found, key=lambda plan: plan.cost)


def _orders(
    operands: tuple[Indices, ...], output: Indices, sizes: Sizes, held: Sequence[Held]
) -> Iterator[ContractionPlan]:
    """The order of the fewest multiplications; along the chain, from either end; and with those first that are cut
    along the same index."""
    yield plan_contraction(operands, output, sizes)
    if len(operands) < 3:
        return
    chain = contiguous(operands)
    clusters: dict[object, list[int]] = {}
    for k in chain:
        clusters.setdefault(held[k].cut or k, []).append(k)
    for groups in ([[k] for k in chain], [[k] for k in reversed(chain)], list(clusters.values())):
        yield plan_along(_path_through(groups, len(operands)), operands, output, sizes)


def _path_through(groups: Sequence[Sequence[int]], num_operands: int) -> list[tuple[int, int]]:
    """Each group contracted by itself, then group after group onto the first."""
    left, path, new = list(range(num_operands)), list[tuple[int, int]](), num_operands

    def join(first: int, second: int) -> int:
        nonlocal new
        low, high = sorted((left.index(first), left.index(second)))
        path.append((low, high))
        del left[high], left[low]
        left.append(new)
        new += 1
        return new - 1

    def join_all(names: Sequence[int]) -> int:
        result = names[0]
        for name in names[1:]:
            result = join(result, name)
        return result

    join_all([join_all(group) for group in groups])
    return path


@dataclass
class _Operand:
    """A tensor on its way into a meeting, known by its indices and by how it is held."""

    indices: Indices
    held: Held
    moves: list[tuple[Move, str | None]] = field(default_factory=list)


class _Walk:
    """Goes along an order with tensors of which only indices and placement are known."""

    def __init__(self, sizes: Sizes) -> None:
        self._size = dict(sizes)
        self._moved = 0

    def along(self, plan: ContractionPlan, held: Sequence[Held], must_be_whole: bool) -> MeetingPlan:
        remaining, meetings = list(held), list[Meeting]()
        for pair in plan.pairs:
            states = [remaining[position] for position in pair.positions]
            remaining = [h for n, h in enumerate(remaining) if n not in pair.positions]
            meetings.append(self._meet(pair, *states))
            remaining.append(meetings[-1].held)
        (last,) = remaining
        if last.cut is not None and last.cut not in plan.output:
            last = Held(is_partial=True)  # summed over at the end, each rank its piece
        if last != WHOLE and must_be_whole:
            self._moved += _TRAFFIC[Move.ADD_UP if last.is_partial else Move.GATHER] * self._elements(plan.output)
        return MeetingPlan(plan, tuple(meetings), last, plan.multiply_adds, self._moved)

    def _meet(self, pair: Pair, a: Held, b: Held) -> Meeting:
        left, right = _Operand(pair.a, a), _Operand(pair.b, b)
        small = min((left, right), key=lambda operand: self._elements(operand.indices))
        if a.is_partial and b.is_partial:
            self._move(small, Move.ADD_UP)
        if a.cut is not None and b.cut is not None and a.cut != b.cut:
            self._move(small, Move.GATHER, small.held.cut)
        for own, other in ((left, right), (right, left)):
            if other.held.cut is not None and own.held.cut is None:
                self._fit_to_cut(own, other.held.cut)
            elif other.held.is_partial and own.held == WHOLE:
                self._fit_to_partial(own, other, pair)
        return Meeting(pair, (tuple(left.moves), tuple(right.moves)), _product(pair, left.held, right.held))

    def _fit_to_cut(self, operand: _Operand, index: str) -> None:
        if index in operand.indices:
            self._move(operand, Move.ADD_UP_CUT if operand.held.is_partial else Move.CUT, index)
            return
        if operand.held.is_partial:
            self._move(operand, Move.ADD_UP)
        self._move(operand, Move.SHARE)

    def _fit_to_partial(self, whole: _Operand, partial: _Operand, pair: Pair) -> None:
        """The sum now, or later, when it is that of the product; then the other's gradient is to be added up too."""
        later = self._elements(pair.result) + self._elements(whole.indices)
        if self._elements(partial.indices) <= later:
            self._move(partial, Move.ADD_UP)
        else:
            self._move(whole, Move.SHARE)

    def _move(self, operand: _Operand, move: Move, index: str | None = None) -> None:
        operand.moves.append((move, index))
        if move is not Move.SHARE:
            operand.held = Held(index) if move in (Move.CUT, Move.ADD_UP_CUT) else WHOLE
        self._moved += _TRAFFIC[move] * self._elements(operand.indices)

    def _elements(self, indices: Indices) -> int:
        return prod(self._size[index] for index in indices)


# Elements of the whole tensor that a rank sends, forward and backward together: twice the tensor for a sum that every
# rank gets, once where each gets or gives a piece.
_TRAFFIC = {Move.ADD_UP: 2, Move.SHARE: 2, Move.CUT: 1, Move.GATHER: 1, Move.ADD_UP_CUT: 2}


def _product(pair: Pair, a: Held, b: Held) -> Held:
    cut = a.cut or b.cut
    if cut is not None:
        return Held(cut) if cut in pair.result else Held(is_partial=True)
    return Held(is_partial=a.is_partial or b.is_partial)
