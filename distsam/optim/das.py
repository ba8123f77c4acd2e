"""DAS: what SAM does to the core norms, at the cost of one gradient.

Legend: s_k = ||G_k||^2, g_k its gradient, gamma_k = ||g_k||^2, u = 1 / ||g||, eta learning rate, K cores of a network.
All quantities are float64, in a NetworkTable. Frozen cores do not count.
"""

from collections.abc import Iterable, Mapping

from torch import Tensor
from torch.optim import Optimizer

from distsam.balance import FirstPass
from distsam.optim.rescale import Rescaling
from distsam.optim.table import NetworkTable, Number, Rows, Sums
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
        # How often a network hit the bound: a tensor where that is counted on the device.
        self._clipped: Tensor | int = 0

    def growth(self, first: FirstPass, table: NetworkTable, alpha: Number | Rows, rate: Number | Rows) -> Rows:
        """Relative change of each core per learning rate, bounded."""
        gamma, s = map(table.fold, first.of_all_cores())
        mean, norm_sq = table.row_mean(gamma), self._norm_sq(first, table, gamma)
        growth = table.each(lambda g, m, x, u, a: (g - m) / x * (u**-0.5 * a), gamma, mean, s, norm_sq, alpha)
        # A core that is 0, or all but: infinite, or 0 / 0 with it.
        growth = table.finite(growth)
        largest = table.row_max(table.each(lambda g, eta: g * eta, growth, rate), self.lambda_max)
        self._clipped = self._clipped + table.num_above(largest, self.lambda_max)
        return table.each(lambda g, size: g * (self.lambda_max / size), growth, largest)

    def counts(self) -> Mapping[str, Tensor | int]:
        """`clipped`: how many times a network hit lambda_max."""
        return {"clipped": self._clipped}

    def load_counts(self, counts: Mapping[str, int]) -> None:
        """Restore what `counts` gave."""
        self._clipped = counts.get("clipped", 0)

    def _norm_sq(self, first: FirstPass, table: NetworkTable, gamma: Rows) -> Number | Sums:
        if self.norm == "global":
            return first.on_host[0] if first.is_on_cpu else first.grad_norm_sq
        sums = table.row_sum(gamma)
        return table.total(sums) if self.norm == "cores" else sums


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
            Without a bound DAS can diverge where gradients are large (a start far off, or a loss that is a sum over
            many entries): lambda is of degree 1 in the gradient, and a core that it scales too far enlarges the
            gradient (four times a step on the COVID-19 data). Elsewhere it is never hit: `das/clipped` counts.
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
