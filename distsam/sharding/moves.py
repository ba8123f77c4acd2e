"""How a tensor that ranks hold in one way comes to be held in another, forward and backward.

Along one axis of the mesh a tensor is whole on every rank, cut into pieces, or partial: the sum over the ranks is the
tensor. A gradient is held as its tensor is, but that of a partial tensor is whole. What a rank computes from a whole
tensor and its own piece of another gives it a part of the whole one's gradient only: `share` adds the parts up.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from distsam.sharding.collectives import all_reduce_sum_, gather_pieces, scatter_sum
from distsam.sharding.plan import chunk


@dataclass(frozen=True)
class AxisRanks:
    """The ranks along one axis of the mesh, this one among them.

    Args:
        group: these ranks.
        size: how many.
        position: of this rank, from 0.
    """

    group: ProcessGroup | None
    size: int
    position: int

    def piece_length(self, length: int) -> int:
        """Length of the longest piece of a dim of `length`; the last pieces may be shorter, or empty."""
        return -(-length // self.size)

    def bounds(self, length: int) -> tuple[int, int]:
        """Where this rank's piece of a dim of `length` begins and ends."""
        return chunk(length, self.size, self.position)


def add_up(partial: Tensor, ranks: AxisRanks) -> Tensor:
    """The whole tensor of which each rank holds a summand.

    Collectives: one all_reduce of the tensor, forward; every rank of the axis calls it.
    """
    return _AddUp.apply(partial, ranks)


def share(whole: Tensor, ranks: AxisRanks) -> Tensor:
    """The same tensor, to be used together with what only this rank holds.

    Collectives: one all_reduce of its gradient, backward, where it needs one.
    """
    return _Share.apply(whole, ranks)


def cut(whole: Tensor, dim: int, ranks: AxisRanks) -> Tensor:
    """This rank's piece along `dim`.

    Collectives: one all_gather of the pieces of its gradient, backward.
    """
    return _Cut.apply(whole, dim, ranks)


def gather(piece: Tensor, dim: int, length: int, ranks: AxisRanks) -> Tensor:
    """The whole tensor, `length` along `dim`, of which each rank holds a piece; its gradient is whole too.

    Collectives: one all_gather of the pieces, forward.
    """
    return _Gather.apply(piece, dim, length, ranks)


def add_up_cut(partial: Tensor, dim: int, ranks: AxisRanks) -> Tensor:
    """This rank's piece along `dim` of the tensor of which each rank holds a summand.

    Collectives: one reduce_scatter of the tensor forward, and one all_gather of the pieces of its gradient backward.
    """
    return _AddUpCut.apply(partial, dim, ranks)


def scale_gradient(tensor: Tensor, factor: float) -> Tensor:
    """The same tensor; its gradient is multiplied by `factor`."""
    return _ScaleGradient.apply(tensor, factor)


def _gathered(piece: Tensor, dim: int, length: int, ranks: AxisRanks) -> Tensor:
    # Filled up to equal lengths: torch has no collective for pieces of several lengths that every backend knows.
    first = piece.movedim(dim, 0)
    missing = ranks.piece_length(length) - first.shape[0]
    if missing:
        first = torch.cat([first, first.new_zeros(missing, *first.shape[1:])])
    return gather_pieces(first.contiguous(), ranks.group)[:length].movedim(0, dim)


def _own_piece(whole: Tensor, dim: int, ranks: AxisRanks) -> Tensor:
    start, stop = ranks.bounds(whole.shape[dim])
    return whole.narrow(dim, start, stop - start)


class _AddUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, partial: Tensor, ranks: AxisRanks) -> Tensor:
        return all_reduce_sum_(partial.clone(memory_format=torch.contiguous_format), ranks.group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _Share(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, whole: Tensor, ranks: AxisRanks) -> Tensor:
        ctx.ranks = ranks
        return whole.view_as(whole)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return all_reduce_sum_(grad.clone(memory_format=torch.contiguous_format), ctx.ranks.group), None


class _Cut(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, whole: Tensor, dim: int, ranks: AxisRanks) -> Tensor:
        ctx.dim, ctx.length, ctx.ranks = dim, whole.shape[dim], ranks
        return _own_piece(whole, dim, ranks)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _gathered(grad, ctx.dim, ctx.length, ctx.ranks), None, None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, piece: Tensor, dim: int, length: int, ranks: AxisRanks) -> Tensor:
        ctx.dim, ctx.ranks = dim, ranks
        return _gathered(piece, dim, length, ranks)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        # A copy: a view would hold the memory of the whole gradient for as long as a parameter keeps its piece.
        piece = _own_piece(grad, ctx.dim, ctx.ranks).clone(memory_format=torch.contiguous_format)
        return piece, None, None, None


class _AddUpCut(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, partial: Tensor, dim: int, ranks: AxisRanks) -> Tensor:
        ctx.dim, ctx.length, ctx.ranks = dim, partial.shape[dim], ranks
        first = partial.movedim(dim, 0)
        missing = ranks.piece_length(ctx.length) * ranks.size - ctx.length
        if missing:
            first = torch.cat([first, first.new_zeros(missing, *first.shape[1:])])
        piece = scatter_sum(first.contiguous(), ranks.group)
        start, stop = ranks.bounds(ctx.length)
        return piece[: stop - start].movedim(0, dim)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _gathered(grad, ctx.dim, ctx.length, ctx.ranks), None, None


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None
