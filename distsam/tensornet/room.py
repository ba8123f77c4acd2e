"""Contractions that run again and again, slice after slice: in the same memory, and by steps that are found once."""

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from distsam.tensornet.contraction import Indices, Pair, arranged, contract_pair, is_joined, lies_turned


def are_several(tensors: Sequence[Tensor]) -> bool:
    """Whether some are under torch.func's transforms, or the older ones that torch.autograd's batched gradients use."""
    is_old = torch._C._functorch.is_legacy_batchedtensor
    return torch._C._are_functorch_transforms_active() or any(map(is_old, tensors))


class Room:
    """Memory for what the contractions of a slice make, used again by those of the next: memory that is fresh from the
    system takes longer to come than to write. Nothing that it holds may be differentiated, or outlast `again`.
    """

    def __init__(self) -> None:
        # Flat, and as it was last asked for.
        self._held: list[tuple[Tensor, Tensor]] = []
        self._next = 0
        # Elements that a slice makes elsewhere: of this slice, and the most. And of the operands of one product, which
        # torch copies for that time where BLAS does not take them as they lie.
        self._beside = self._most_beside = self._most_copied = 0

    def again(self) -> None:
        """The next request gets the memory of the first, if that suffices, and so on."""
        self._next = self._beside = 0

    @property
    def num_elements(self) -> int:
        """Of all that it holds, and at most of what one slice makes beside."""
        return sum(flat.numel() for flat, _ in self._held) + self._most_beside + self._most_copied

    def _count_beside(self, number: int) -> None:
        self._beside += number
        self._most_beside = max(self._most_beside, self._beside)

    def empty(self, like: Tensor, shape: Sequence[int]) -> Tensor:
        """A tensor of this shape, of the dtype and on the device of `like`."""
        place, self._next = self._next, self._next + 1
        if place == len(self._held):
            flat = like.new_empty(prod(shape))
            self._held.append((flat, flat.view(shape)))
        flat, view = self._held[place]
        if view.shape != shape:
            # Of a slice that is shorter, or that needs a copy where the first did not.
            if flat.numel() < prod(shape):
                flat = like.new_empty(prod(shape))
            view = flat[: prod(shape)].view(shape)
            self._held[place] = flat, view
        return view

    def contract_pair(self, pair: Pair, a: Tensor, b: Tensor) -> Tensor:
        """As `contraction.contract_pair`."""
        if not pair.summed or not (pair.free_a or pair.free_b):
            result = contract_pair(pair, a, b)
            # Both in one order, and their product before it is summed.
            summed = prod(n for i, n in zip(pair.a, a.shape, strict=True) if i in pair.summed)
            self._count_beside(a.numel() + b.numel() + result.numel() * (1 + summed))
            return result
        rows, columns = pair.free_a, pair.free_b
        left = _layout(a.shape, a.stride(), pair.a, pair.batch, rows, pair.summed)
        right = _layout(b.shape, b.stride(), pair.b, pair.batch, pair.summed, columns)
        a_BFS, b_BSF = self._matrices(a, pair.a, left), self._matrices(b, pair.b, right)
        self._most_copied = max(self._most_copied, a_BFS.numel() + b_BSF.numel())
        result = self.empty(a, (*a_BFS.shape[:-1], b_BSF.shape[-1]))
        (torch.bmm if pair.batch else torch.mm)(a_BFS, b_BSF, out=result)
        return result.view((*left.sizes[0], *left.sizes[1], *right.sizes[2]))

    def contiguous(self, tensor: Tensor) -> Tensor:
        """The tensor, or a copy of it in one piece."""
        return tensor if tensor.is_contiguous() else self.empty(tensor, tensor.shape).copy_(tensor)

    def index_select(self, tensor: Tensor, dim: int, index: Tensor) -> Tensor:
        """As torch.index_select."""
        shape = (*tensor.shape[:dim], len(index), *tensor.shape[dim + 1 :])
        return torch.index_select(tensor, dim, index, out=self.empty(tensor, shape))

    def _matrices(self, tensor: Tensor, indices: Indices, layout: "_Layout") -> Tensor:
        if layout.is_summed_alone:
            tensor = arranged(tensor, indices, [(index,) for index in layout.wanted])
            self._count_beside(2 * tensor.numel())
        elif layout.dims is not None:
            tensor = tensor.permute(layout.dims)
        if layout.is_copied:
            tensor = self.empty(tensor, tensor.shape).copy_(tensor)
        tensor = tensor.view(layout.shape) if not layout.is_summed_alone else tensor.reshape(layout.shape)
        return tensor.mT if layout.is_turned else tensor


class _Layout(NamedTuple):
    """How a tensor becomes (batch, rows, columns).

    Args:
        wanted: its indices, in that order or with rows and columns exchanged.
        dims: the same as dims; None where they are in order.
        is_summed_alone: whether others are summed out first.
        is_copied: whether only a copy has the shape.
        shape: of the matrices, before they are turned.
        is_turned: whether rows and columns are exchanged.
        sizes: of batch, rows and columns, index by index.
    """

    wanted: Indices
    dims: tuple[int, ...] | None
    is_summed_alone: bool
    is_copied: bool
    shape: tuple[int, ...]
    is_turned: bool
    sizes: tuple[tuple[int, ...], ...]


@lru_cache(maxsize=4096)
def _layout(
    shape: tuple[int, ...], strides: tuple[int, ...], indices: Indices, batch: Indices, rows: Indices, columns: Indices
) -> _Layout:
    size = dict(zip(indices, shape, strict=True))
    is_turned = lies_turned(strides, indices, rows, columns)
    groups = [*([batch] if batch else []), *((columns, rows) if is_turned else (rows, columns))]
    wanted = tuple(index for group in groups for index in group)
    dims = tuple(indices.index(index) for index in wanted)
    is_summed_alone = len(dims) < len(indices)
    # Strides of what is summed first are not known here; it is fresh memory, in the order that is wanted.
    arranged_shape, arranged_strides = ([own[d] for d in dims] for own in (shape, strides))
    ends, is_copied = 0, False
    for group in groups:
        own = slice(ends, ends := ends + len(group))
        is_copied |= not (is_summed_alone or is_joined(arranged_shape[own], arranged_strides[own]))
    return _Layout(
        wanted,
        None if list(dims) == sorted(dims) else dims,
        is_summed_alone,
        is_copied,
        tuple(prod(size[i] for i in group) for group in groups),
        is_turned,
        tuple(tuple(size[i] for i in group) for group in (batch, rows, columns)),
    )
