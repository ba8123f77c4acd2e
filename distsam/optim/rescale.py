"""DAS and BAR: core norms balanced explicitly, by one factor per core before the base step.

Legend: s_k = ||G_k||^2, g_k its gradient, gamma_k = ||g_k||^2, u = 1 / ||g||, eta learning rate, K cores of a network.
All quantities are (M, K) float64: M networks, padded to the largest K with cores that do not count.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from distsam.balance import FirstPass
from distsam.optim.guard import core_rates
from distsam.optim.wrapper import OnePass, descend
from distsam.sharding import local_tensor
from distsam.tensornet import CoreNetwork

NORMS = ("cores", "global", "network")
RULES = ("nbar", "obar")
# Cores start with equal norms; what is left of a difference then is the rounding of sums, which depends on the
# number of ranks. float64 sums over shards agree to a few times 1e-16 per rank: below this they are a tie.
TIE = 1e-12
HUGE = 1e150


@dataclass(frozen=True)
class _Table:
    """How the flat vectors of the measured cores fold into networks, and back.

    index: (M, K) position of each core in the measured vectors; is_core: (M, K) False on padding;
    members: (n,) places in the flattened (M, K) that are cores; targets: (n,) their measured positions.
    """

    index: Tensor
    is_core: Tensor
    members: Tensor
    targets: Tensor

    @classmethod
    def of(cls, networks: Sequence[CoreNetwork], first: FirstPass) -> "_Table":
        width = max(len(n.cores) for n in networks)
        device = first.gamma.device
        rows = [[first.position[id(core)] for core in n.cores] for n in networks]
        flat = [i * width + j for i, row in enumerate(rows) for j in range(len(row))]
        is_core = [[j < len(row) for j in range(width)] for row in rows]
        return cls(
            torch.tensor([row + [row[0]] * (width - len(row)) for row in rows], device=device),
            torch.tensor(is_core, device=device),
            torch.tensor(flat, device=device),
            torch.tensor([k for row in rows for k in row], device=device),
        )

    def mean(self, values: Tensor) -> Tensor:
        """(M, 1) mean over each network's cores."""
        total = values.where(self.is_core, 0.0).sum(1, keepdim=True)
        return total / self.is_core.sum(1, keepdim=True)


class _Rescale(OnePass):
    """A wrapper that multiplies every core of its networks by 1 + eta growth_k before the base step.

    Weight tensors are touched once, in place; no collective of its own, no host read.
    """

    def __init__(
        self, base_optimizer: Optimizer, networks: Iterable[CoreNetwork], alpha: float, max_skipped: int
    ) -> None:
        super().__init__(base_optimizer, max_skipped)
        if not 0 <= alpha < float("inf"):
            raise ValueError(f"alpha={alpha}: the strength of the rescale is a finite number of at least 0")
        if isinstance(networks, nn.Module):
            raise TypeError("networks is a module: pass core_networks(model), taken after the model was sharded")
        self._networks = tuple(networks)
        if not self._networks:
            raise ValueError("networks is empty: pass core_networks(model), taken after the model was sharded")
        self.alpha = alpha
        self._table: _Table | None = None
        self._position: Mapping[int, int] | None = None
        self._growth: Tensor | None = None

    @property
    def networks(self) -> tuple[CoreNetwork, ...]:
        """The networks whose cores are rescaled."""
        return self._networks

    @property
    def growth(self) -> Tensor | None:
        """(N,) float64 relative change of each measured core by the last rescale, per learning rate."""
        return self._growth

    def apply(self, first: FirstPass) -> None:
        """Rescale the cores by what the first pass measured, then the base's step."""
        if self._table is None or self._position is not first.position:
            self._table, self._position = _Table.of(self._networks, first), first.position
        rate = self._learning_rate(first)
        growth = self._bounded(self._wanted_growth(first, self._table), rate).reshape(-1)[self._table.members]
        self._growth = torch.zeros_like(first.gamma).index_copy_(0, self._table.targets, growth)
        flat_rate = rate.reshape(-1)[self._table.members] if isinstance(rate, Tensor) else rate
        self._scale_cores(1 + flat_rate * growth)
        descend(self.base, first)

    def _wanted_growth(self, first: FirstPass, table: _Table) -> Tensor:
        raise AssertionError("a rescale says how its cores grow")

    def _bounded(self, growth: Tensor, rate: Tensor | float) -> Tensor:
        return growth

    def _learning_rate(self, first: FirstPass) -> Tensor | float:
        """One number where all cores share it (no copy to the device), else (M, K)."""
        assert self._table is not None
        rates = core_rates(self.param_groups, [core for n in self._networks for core in n.cores])
        if len(set(rates)) == 1:
            return rates[0]
        spread = torch.zeros(self._table.index.numel(), dtype=torch.float64)
        spread[self._table.members.cpu()] = torch.tensor(rates, dtype=torch.float64)
        return spread.view(self._table.index.shape).to(first.gamma.device)

    @torch.no_grad()
    def _scale_cores(self, factors: Tensor) -> None:
        cores = [local_tensor(core) for n in self._networks for core in n.cores]
        torch._foreach_mul_(cores, list(factors.unbind()))


class DAS(_Rescale):
    """Deviation-aware scaling: what SAM does to the core norms, at the cost of one gradient.

    lambda_k = eta alpha u (gamma_k - mean gamma) / s_k; G_k <- (1 + lambda_k) G_k; then the base step. A core whose
    gradient is above its network's average grows. With plain SGD, norm="global" and alpha = rho the norm deviation
    moves as under SAM, to first order. Gradients must be unscaled and unclipped: lambda is of degree 1 in them.

    Args:
        base_optimizer: any torch optimizer, or BAR.
        networks: from `core_networks(model)`, after the model was sharded.
        alpha: strength; the counterpart of SAM's rho.
        norm: what u is the inverse norm of: "cores" all cores given here (the paper), "global" all gradients of
            the optimizer, "network" each network's cores alone.
        lambda_max: where max_k |lambda_k| of a network is larger, all its lambda are scaled down alike to it.
            Without a bound DAS can diverge: lambda is of degree 1 in the gradient, and a core that it scales too
            far enlarges the gradient (four times a step on the COVID-19 data). Counted in `num_clipped`.
        max_skipped: so many non-finite steps in a row raise TrainingDiverged.

    s_k = 0 or vanishing gradients give lambda = 0.

    Collectives: one all_reduce of 2 N + 3 float64 per step, N cores; every rank calls step.

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
        super().__init__(base_optimizer, networks, alpha, max_skipped)
        if norm not in NORMS:
            raise ValueError(f"norm={norm!r}: use one of {', '.join(NORMS)}")
        if not 0 < lambda_max < 1:
            raise ValueError(f"lambda_max={lambda_max}: use a number above 0 and below 1")
        self.norm = norm
        self.lambda_max = lambda_max
        self._num_clipped: Tensor | None = None
        self._clipped_before = 0

    def restore_clipped(self, count: int) -> None:
        """Add what an earlier part of the run counted."""
        self._clipped_before += count

    @property
    def num_clipped(self) -> int:
        """How many times a network hit lambda_max; reading it waits for the device."""
        now = 0 if self._num_clipped is None else int(self._num_clipped)
        return self._clipped_before + now

    def _wanted_growth(self, first: FirstPass, table: _Table) -> Tensor:
        assert first.core_norms_sq is not None
        gamma, s = first.gamma[table.index], first.core_norms_sq[table.index]
        if self.norm == "global":
            norm_sq = first.grad_norm_sq.expand(1, 1)
        else:
            norm_sq = gamma.where(table.is_core, 0.0).sum(1, keepdim=True)
            if self.norm == "cores":
                norm_sq = norm_sq.sum(0, keepdim=True)
        growth = self.alpha * norm_sq.rsqrt() * (gamma - table.mean(gamma)) / s
        growth = growth.where(table.is_core & (s > 0) & (norm_sq > 0), 0.0)
        # A core that has all but vanished: finite, so that the bound can scale it down.
        return growth.clamp(-HUGE, HUGE)

    def _bounded(self, growth: Tensor, rate: Tensor | float) -> Tensor:
        largest = (rate * growth).abs().amax(1, keepdim=True)
        is_over = largest > self.lambda_max
        if self._num_clipped is None:
            self._num_clipped = torch.zeros((), dtype=torch.int64, device=growth.device)
        self._num_clipped += is_over.sum()
        return growth * torch.where(is_over, self.lambda_max / largest, 1.0)


class BAR(_Rescale):
    """Balancedness-aware regularisation: every core is scaled up or down by the same relative amount.

    "nbar": core k by 1 + alpha eta sign(gamma_k - mean gamma); "obar": core k by 1 - alpha eta sign(s_k - mean s); then
    the base step. For K = 2 these are the published rules, except that a tie changes nothing; K > 2 is ours.

    Args:
        base_optimizer: any torch optimizer, or DAS.
        networks: from `core_networks(model)`, after the model was sharded.
        alpha: strength; alpha times the learning rate is the relative change of a core in a step.
        rule: "nbar" compares gradient norms, "obar" core norms.
        max_skipped: so many non-finite steps in a row raise TrainingDiverged.

    Collectives: one all_reduce of 2 N + 3 float64 per step, N cores; every rank calls step.

    Source: arXiv:2410.14802, Algorithms 2 (nBAR) and 3 (oBAR).
    """

    def __init__(
        self,
        base_optimizer: Optimizer,
        networks: Iterable[CoreNetwork],
        *,
        alpha: float,
        rule: str = "nbar",
        max_skipped: int = 10,
    ) -> None:
        super().__init__(base_optimizer, networks, alpha, max_skipped)
        if rule not in RULES:
            raise ValueError(f"rule={rule!r}: use one of {', '.join(RULES)}")
        self.rule = rule

    def _wanted_growth(self, first: FirstPass, table: _Table) -> Tensor:
        assert first.core_norms_sq is not None
        compared = first.gamma if self.rule == "nbar" else -first.core_norms_sq
        values = compared[table.index]
        away = values - table.mean(values)
        sign = torch.sign(away).where(away.abs() > TIE * values.abs(), 0.0)
        return (self.alpha * sign).where(table.is_core, 0.0)
