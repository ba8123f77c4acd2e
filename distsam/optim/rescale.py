"""DAS and BAR: core norms balanced explicitly, by one factor per core before the base step.

Legend: s_k = ||G_k||^2, g_k its gradient, gamma_k = ||g_k||^2, u = 1 / ||g||, eta learning rate, K cores of a network.
All quantities are (M, K) float64: M networks, padded to the largest K. Padding and frozen cores do not count.
"""

from abc import abstractmethod
from collections.abc import Iterable
from itertools import compress

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from distsam.balance import FirstPass
from distsam.optim.guard import core_rates
from distsam.optim.table import NetworkTable, TableCache
from distsam.optim.wrapper import OnePass, descend
from distsam.sharding import local_tensor
from distsam.tensornet import CoreNetwork

NORMS = ("cores", "global", "network")
RULES = ("nbar", "obar")
# What sums over shards leave of a difference between equal norms depends on the number of ranks: a few times 1e-16 per
# rank, since they are summed in float64. Below this it is a tie. float32 cores that were drawn with equal norms differ
# by their own rounding, 1e-8, alike on every number of ranks: that is a difference.
TIE = 1e-12
HUGE = 1e150


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
        self._tables = TableCache(self._networks)
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
        cores = [core for n in self._networks for core in n.cores]
        moved = {id(p) for group in self.param_groups for p in group["params"] if p.requires_grad}
        is_moved = tuple(id(core) in moved for core in cores)
        self._growth = None
        if any(is_moved):
            table = self._tables.get(first, is_moved)
            rate = self._learning_rate(cores, table, is_moved)
            growth = self._bounded(self._wanted_growth(first, table), rate)
            self._growth = table.unfold(growth, torch.zeros_like(first.gamma))
            self._scale_cores(cores, 1 + table.members_of(rate * growth))
        descend(self.base, first)

    @abstractmethod
    def _wanted_growth(self, first: FirstPass, table: NetworkTable) -> Tensor:
        """(M, K) relative change of each core per learning rate, 0 where a core does not count."""

    def _bounded(self, growth: Tensor, rate: Tensor | float) -> Tensor:
        return growth

    def _learning_rate(
        self, cores: list[nn.Parameter], table: NetworkTable, is_moved: tuple[bool, ...]
    ) -> Tensor | float:
        """One number where all cores that move share it and the host knows it, else (M, K)."""
        rates = core_rates(self.param_groups, cores)
        if rates.device.type == "cpu" and len(shared := set(compress(rates.tolist(), is_moved))) == 1:
            return shared.pop()
        # Of a few bytes, which the driver takes before it returns: the host does not wait.
        return table.spread(rates.to(table.index.device, non_blocking=True))

    @torch.no_grad()
    def _scale_cores(self, cores: list[nn.Parameter], factors: Tensor) -> None:
        torch._foreach_mul_([local_tensor(core) for core in cores], list(factors.unbind()))


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
    def clipped(self) -> Tensor | None:
        """() int64 on the device: how many times a network hit lambda_max; None before the first step."""
        return None if self._num_clipped is None else self._num_clipped + self._clipped_before

    @property
    def num_clipped(self) -> int:
        """How many times a network hit lambda_max; reading it waits for the device."""
        return self._clipped_before if self._num_clipped is None else int(self._num_clipped) + self._clipped_before

    def _wanted_growth(self, first: FirstPass, table: NetworkTable) -> Tensor:
        assert first.core_norms_sq is not None
        gamma, s = table.fold(first.gamma), table.fold(first.core_norms_sq)
        norm_sq = first.grad_norm_sq.expand(1, 1)
        if self.norm != "global":
            norm_sq = gamma.sum(1, keepdim=True)
        if self.norm == "cores":
            norm_sq = norm_sq.sum(0, keepdim=True)
        growth = self.alpha * norm_sq.rsqrt() * (gamma - table.mean(gamma)) / s
        growth = growth.where(table.counts & (s > 0) & (norm_sq > 0), 0.0)
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

    def _wanted_growth(self, first: FirstPass, table: NetworkTable) -> Tensor:
        assert first.core_norms_sq is not None
        compared = table.fold(first.gamma if self.rule == "nbar" else -first.core_norms_sq)
        away = compared - table.mean(compared)
        is_tied = away.abs() <= TIE * compared.abs()
        return (self.alpha * away.sign()).where(table.counts & ~is_tied, 0.0)
