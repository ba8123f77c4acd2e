"""Weights moved by scaled gradients and brought back bit for bit, from one copy of the local shards."""

from collections.abc import Iterator, Sequence
from itertools import compress

import torch
from torch import Tensor

from distsam.sharding import LocalPieces

# On CPU so many elements are copied and then moved, before the next: the weights are read from memory once.
CHUNK = 2**17


class Perturbation:
    """One perturbation at a time; the copy's buffers are kept between steps."""

    def __init__(self) -> None:
        self._pieces: LocalPieces | None = None
        self._is_moved: list[bool] = []
        self._dtypes: list[torch.dtype] = []
        self._saved: list[Tensor] = []
        self._chunks: list[slice] = []
        self.is_inside = False

    @torch.no_grad()
    def enter(self, pieces: LocalPieces, grads: Sequence[Tensor | None], scales: Tensor, core_scales: Tensor) -> Tensor:
        """Copy the weights, then add scale * gradient to each parameter that has one.

        Args:
            pieces, grads: P parameters and the local pieces of their gradients.
            scales: () float64, one for all, or (P,).
            core_scales: (N,) the scales of the first N parameters.

        Returns:
            (N,) float64 factors: epsilon_k = factors_k * grads_k as the gradients are afterwards. On CUDA they are
            scaled in place, because a scale that lives on the device cannot be an `alpha`, and the factors are 1.
        """
        is_moved = [g is not None for g in grads]
        weights, steps = list(compress(pieces.weights(), is_moved)), [g for g in grads if g is not None]
        if not steps:
            return core_scales
        self._make_room(pieces, is_moved, weights)
        self.is_inside = True
        if scales.device.type != "cpu":
            self._move_on_device(weights, steps, list(compress(scales.unbind(), is_moved)) if scales.dim() else scales)
            return torch.ones_like(core_scales)
        self._move_on_cpu(weights, steps, list(compress(scales.tolist(), is_moved)) if scales.dim() else float(scales))
        return core_scales

    @torch.no_grad()
    def leave(self) -> None:
        """Bring the weights back, bit for bit, to where they are stored by now."""
        if self.is_inside and self._pieces is not None:
            torch._foreach_copy_(list(compress(self._pieces.weights(), self._is_moved)), self._saved)
        self.is_inside = False

    def _make_room(self, pieces: LocalPieces, is_moved: list[bool], weights: list[Tensor]) -> None:
        """The last step's buffers, if they were made for the same pieces in the same precision, or new ones."""
        dtypes = [w.dtype for w in weights]
        if (pieces, is_moved, dtypes) != (self._pieces, self._is_moved, self._dtypes):
            self._pieces, self._is_moved, self._dtypes = pieces, is_moved, dtypes
            self._saved = [torch.empty_like(w) for w in weights]
            self._chunks = list(_chunks(weights))

    def _move_on_device(self, weights: list[Tensor], steps: list[Tensor], scales: Tensor | list[Tensor]) -> None:
        torch._foreach_copy_(self._saved, weights)
        torch._foreach_mul_(steps, scales)
        torch._foreach_add_(weights, steps)

    def _move_on_cpu(self, weights: list[Tensor], steps: list[Tensor], scales: float | list[float]) -> None:
        for chunk in self._chunks:
            torch._foreach_copy_(self._saved[chunk], weights[chunk])
            if isinstance(scales, float):
                torch._foreach_add_(weights[chunk], steps[chunk], alpha=scales)
            else:
                for weight, step, scale in zip(weights[chunk], steps[chunk], scales[chunk], strict=True):
                    weight.add_(step, alpha=scale)


def _chunks(tensors: Sequence[Tensor]) -> Iterator[slice]:
    """Runs of neighbours, of at most CHUNK elements or of one tensor."""
    start = total = 0
    for i, tensor in enumerate(tensors):
        if i > start and total + tensor.numel() > CHUNK:
            yield slice(start, i)
            start, total = i, 0
        total += tensor.numel()
    yield slice(start, len(tensors))
