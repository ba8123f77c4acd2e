"""DAS: what SAM does to the core norms, at the cost of one gradient.

Legend: s_k = ||G_k||^2, g_k its gradient, gamma_k = ||g_k||^2, u = 1 / ||g||, eta learning rate, K cores of a network.
All quantities are (M, K) float64: M networks, padded to the largest K. Padding and frozen cores do not count.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from distsam.balance import FirstPass
from distsam.optim.rescale import Rescaling
from distsam.optim.table import NetworkTable
from distsam.tensornet import CoreNetwork

NORMS = ("cores", "global", "network")


class DeviationRule:
    """lambda_k / eta = alpha u (gamma_k - mean gamma) / s_k, bounded; see DAS.

    Args:
        norm: what u is the inverse norm of.
        lambda_max: bound on the lambda of a network.
    """

    name = "das"

    def __init__(self, norm: str, lambda_max: float) -> None:
        self.norm = norm
        self.lambda_max = lambda_max
        # How often each network hit the bound: (M, 1) on the device, and in earlier parts of the run, of all together.
        self._clipped: Any = None
        self._clipped_before: Any = 0

    def growth(self, first: FirstPass, table: NetworkTable, alpha: Any, rate: Any) -> Any:
        """(M, K) relative change per learning rate, bounded."""
        gamma, s = map(table.fold, first.of_all_cores())
        total = gamma.sum(axis=1, keepdims=True)
        growth = (gamma - total / table.num_counting) / s
        growth *= self._norm_sq(first, total) ** -0.5 * alpha
        size = abs(growth * rate)
        # Nearly always all is finite and within the bound; where the host need not wait to see that, it saves the rest.
        if table.is_on_host and size.max() <= self.lambda_max:
            return growth
        # A core that is 0, or all but: infinite, or 0 / 0 with it.
        growth = table.mask(table.xp.where(table.xp.isfinite(growth), growth, 0.0))
        return self._bounded(table.xp, growth, rate)

    def counts(self) -> Mapping[str, Tensor | int]:
        """`clipped`: how many times a network hit lambda_max."""
        return {"clipped": torch.as_tensor(self._clipped_before + self._total())}

    def load_counts(self, counts: Mapping[str, int]) -> None:
        """Restore what `counts` gave."""
        self._clipped, self._clipped_before = None, counts.get("clipped", 0)

    def _norm_sq(self, first: FirstPass, total: Any) -> Any:
        if self.norm == "global":
            return np.float64(first.on_host[0]) if first.is_on_cpu else first.grad_norm_sq
        return total.sum() if self.norm == "cores" else total

    def _bounded(self, xp: Any, growth: Any, rate: Any) -> Any:
        largest = xp.amax(abs(growth * rate), 1, keepdims=True)
        if self._clipped is None or self._clipped.shape != largest.shape:
            self._clipped_before = self._clipped_before + self._total()
            self._clipped = xp.zeros_like(largest, dtype=xp.int64)
        self._clipped += largest > self.lambda_max
        return growth * (self.lambda_max / largest).clip(max=1.0)

    def _total(self) -> Any:
        return 0 if self._clipped is None else self._clipped.sum()


class DAS(Rescaling):
    """Deviation-aware scaling: what SAM does to the core norms, at the cost of one gradient.

    lambda_k = eta alpha u (gamma_k - mean gamma) / s_k; G_k <- (1 + lambda_k) G_k; then the base step. A core whose
    gradient is above its network's average grows. With plain SGD, norm="global" and alpha = rho the norm deviation
    moves as under SAM, to first order. Gradients must be unscaled and unclipped (`clip_norm` comes after): lambda is of
    degree 1 in them.

    Args:
        base_optimizer: any torch optimizer, or BAR.
        networks: from `core_networks(model)`, after the model was sharded.
        alpha: strength; the counterpart of SAM's rho. Of parameter groups that do not give their own, see Rescaling.
        norm: what u is the inverse norm of: "cores" all cores given here (the paper), "global" all gradients of
            the optimizer, "network" each network's cores alone.
        lambda_max: where max_k |lambda_k| of a network is larger, all its lambda are scaled down alike to it.
            Without a bound DAS can diverge: lambda is of degree 1 in the gradient, and a core that it scales too
            far enlarges the gradient (four times a step on the COVID-19 data). Counted as `das/clipped`.
        max_skipped: so many non-finite steps in a row raise TrainingDiverged.

    s_k = 0 (or so small that lambda_k is infinite) or vanishing gradients give lambda = 0.

    Collectives: one all_reduce of P + N + 2 float64 per step, P parameters, N cores; every rank calls step.

    Source: arXiv:2508.10435, Algorithm 2, eq. (7)-(9); the bound and `norm` are ours.
    """

    def __init__(
        self,
        base_optimizer: Optimizer,
        networks: Iterable[CoreNetwork],
        *,
        alpha: float,
        norm: str = "cores",
        lambda_max: float = 0.1,
        max_skipped: int = 10,
    ) -> None:
        if norm not in NORMS:
            raise ValueError(f"norm={norm!r}: use one of {', '.join(NORMS)}")
        if not 0 < lambda_max < 1:
            raise ValueError(f"lambda_max={lambda_max}: use a number above 0 and below 1")
        super().__init__(base_optimizer, networks, DeviationRule(norm, lambda_max), alpha, max_skipped)
        self.norm = norm
        self.lambda_max = lambda_max

    @property
    def num_clipped(self) -> int:
        """How many times a network hit lambda_max; reading it waits for the device."""
        return int(self.rescale.counts()["clipped"])
