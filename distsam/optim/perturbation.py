"""Weights moved by scaled directions and brought back bit for bit, from one copy of the local shards."""

import math
from collections.abc import Iterator, Sequence
from itertools import compress

import torch
from torch import Tensor

from distsam.sharding import Pieces

# So many elements are copied and then moved, before the next. On CPU the weights are so read from memory once; on an
# accelerator, where a scaled direction needs room of its own, it bounds that room.
CHUNK = 2**17
DEVICE_CHUNK = 2**24


class Perturbation:
    """One perturbation at a time; the copy's buffers are kept between steps."""

    def __init__(self) -> None:
        self._pieces: Pieces | None = None
        self._is_moved: list[bool] = []
        self._dtypes: list[torch.dtype] = []
        self._saved: list[Tensor] = []
        self._chunks: list[slice] = []
        self._largest = math.inf
        self.is_inside = False

    @property
    def copies(self) -> tuple[Tensor, ...]:
        """The buffers for the copy of the weights, which stay from step to step."""
        return tuple(self._saved)

    def enter(self, pieces: Pieces, directions: Sequence[Tensor | None], scales: float | Tensor) -> None:
        """Copy the weights, then add scale * direction to each parameter that has one. Call it under no_grad.

        Args:
            pieces: of P parameters.
            directions: P local pieces; they are not changed.
            scales: one for all, a number or () float64, or (P,); finite.
        """
        is_moved = [d is not None for d in directions]
        steps = [d for d in directions if d is not None]
        if not steps:
            return
        weights = pieces.weights()
        if len(steps) < len(weights):
            weights = list(compress(weights, is_moved))
        self._fit_buffers(pieces, is_moved, weights)
        self.is_inside = True
        if not isinstance(scales, Tensor):
            self._move_by_number(weights, steps, scales)
        elif scales.device.type != "cpu":
            self._move_by_tensor(weights, steps, list(compress(scales.unbind(), is_moved)) if scales.dim() else scales)
        else:
            numbers = scales.tolist()
            self._move_by_number(weights, steps, numbers if scales.dim() == 0 else list(compress(numbers, is_moved)))
        pieces.publish()

    @torch.no_grad()
    def leave(self) -> None:
        """Bring the weights back, bit for bit, to where they are stored by now."""
        if self.is_inside and self._pieces is not None:
            torch._foreach_copy_(list(compress(self._pieces.weights(), self._is_moved)), self._saved)
            self._pieces.publish()
        self.is_inside = False

    def _fit_buffers(self, pieces: Pieces, is_moved: list[bool], weights: list[Tensor]) -> None:
        """The last step's buffers, if they were made for the same pieces in the same precision, or new ones."""
        dtypes = [w.dtype for w in weights]
        if pieces is not self._pieces or (is_moved, dtypes) != (self._is_moved, self._dtypes):
            self._pieces, self._is_moved, self._dtypes = pieces, is_moved, dtypes
            self._largest = min(torch.finfo(dtype).max for dtype in dtypes)
            self._saved = [torch.empty_like(w) for w in weights]
            self._chunks = list(_chunks(weights, CHUNK if pieces.device.type == "cpu" else DEVICE_CHUNK))

    def _move_by_tensor(self, weights: list[Tensor], steps: list[Tensor], scales: Tensor | list[Tensor]) -> None:
        # A scale that lives on the device cannot be an `alpha`.
        for chunk in self._chunks:
            torch._foreach_copy_(self._saved[chunk], weights[chunk])
            moves = torch._foreach_mul(steps[chunk], scales if isinstance(scales, Tensor) else scales[chunk])
            torch._foreach_add_(weights[chunk], moves)

    def _move_by_number(self, weights: list[Tensor], steps: list[Tensor], scales: float | list[float]) -> None:
        if isinstance(scales, float):
            scales = _held(scales, self._largest)
        else:
            scales = [_held(scale, self._largest) for scale in scales]
        for chunk in self._chunks:
            torch._foreach_copy_(self._saved[chunk], weights[chunk])
            if isinstance(scales, float):
                torch._foreach_add_(weights[chunk], steps[chunk], alpha=scales)
            else:
                for weight, step, scale in zip(weights[chunk], steps[chunk], scales[chunk], strict=True):
                    weight.add_(step, alpha=scale)


def _held(scale: float, largest: float) -> float:
    """Infinite where the weights' dtype has no such number: torch would raise, and so the step is skipped."""
    return scale if abs(scale) <= largest else math.copysign(math.inf, scale)


def _chunks(tensors: Sequence[Tensor], size: int) -> Iterator[slice]:
    """Runs of neighbours, of at most `size` elements or of one tensor."""
    start = total = 0
    for i, tensor in enumerate(tensors):
        if i > start and total + tensor.numel() > size:
            yield slice(start, i)
            start, total = i, 0
        total += tensor.numel()
    yield slice(start, len(tensors))
