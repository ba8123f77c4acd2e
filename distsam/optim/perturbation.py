"""Weights moved by scaled gradients and brought back bit for bit, from one copy of the local shards."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from distsam.sharding import local_tensor

# Above this many elements a tensor's copy and its move are done together, while it is in the cache.
LARGE = 2**16


class Perturbation:
    """One perturbation at a time; the copy's buffers are kept between steps."""

    def __init__(self) -> None:
        self._weights: list[Tensor] = []
        self._saved: list[Tensor] = []

    @torch.no_grad()
    def enter(
        self,
        params: Sequence[nn.Parameter],
        grads: Sequence[Tensor | None],
        scales: Tensor | Sequence[Tensor],
        core_scales: Tensor,
    ) -> Tensor:
        """Copy the weights, then add scale * gradient to each parameter that has one.

        Args:
            params, grads: P parameters and the local pieces of their gradients.
            scales: () float64, or P of them.
            core_scales: (N,) the scales of the first N parameters.

        Returns:
            (N,) float64 factors: epsilon_k = factors_k * grads_k as the gradients are afterwards. On CUDA they are
            scaled in place, because a scale that lives on the device cannot be an `alpha`, and the factors are 1.
        """
        moving = [i for i, g in enumerate(grads) if g is not None]
        self._weights = [local_tensor(params[i]) for i in moving]
        if [(w.shape, w.dtype, w.device) for w in self._weights] != [(s.shape, s.dtype, s.device) for s in self._saved]:
            self._saved = [torch.empty_like(w) for w in self._weights]
        steps = [g for g in grads if g is not None]
        if core_scales.is_cuda:
            self._move_on_device(steps, scales if isinstance(scales, Tensor) else [scales[i] for i in moving])
            return torch.ones_like(core_scales)
        each = [float(scales)] * len(moving) if isinstance(scales, Tensor) else [float(scales[i]) for i in moving]
        self._move_on_cpu(steps, each)
        return core_scales

    @torch.no_grad()
    def leave(self) -> None:
        """Bring the weights back, bit for bit."""
        if self._weights:
            torch._foreach_copy_(self._weights, self._saved)
        self._weights = []

    def _move_on_device(self, steps: list[Tensor], scales: Tensor | list[Tensor]) -> None:
        torch._foreach_copy_(self._saved, self._weights)
        torch._foreach_mul_(steps, scales)
        torch._foreach_add_(self._weights, steps)

    def _move_on_cpu(self, steps: list[Tensor], scales: list[float]) -> None:
        small = [i for i, w in enumerate(self._weights) if w.numel() < LARGE]
        for scale in set(scales):
            same = [i for i in small if scales[i] == scale]
            weights = [self._weights[i] for i in same]
            if same:
                torch._foreach_copy_([self._saved[i] for i in same], weights)
                torch._foreach_add_(weights, [steps[i] for i in same], alpha=scale)
        for i, weight in enumerate(self._weights):
            if weight.numel() >= LARGE:
                self._saved[i].copy_(weight)
                weight.add_(steps[i], alpha=scales[i])
