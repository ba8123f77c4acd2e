"""A new ascent: F-SAM, which goes up along what is new in the gradient. arXiv:2403.12350."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from distsam.balance.meter import Gradients
from distsam.optim import Ascent, Sweep, TwoPass
from distsam.sharding import Pieces, local_tensor
from distsam.train.parts import ASCENTS
from distsam.train.seams import Field, Part, Section


class FriendlyKeys(Section):
    radius: float = Field(default=0.05, ge=0, description="Radius of the perturbation.")
    sigma: float = Field(default=0.9, ge=0, description="How much of the mean gradient is taken off.")


class Friendly(Ascent):
    """epsilon = rho d / ||d||, d = g - sigma m, m a running mean of g."""

    name = "friendly"

    def __init__(self, rho: float, sigma: float) -> None:
        self.rho, self.sigma = rho, sigma
        self.networks = ()
        self.own_state: dict[nn.Parameter, dict[str, Tensor]] = {}
        self._directions: list[Tensor | None] = []

    def probes(self, pieces: Pieces, grads: Gradients) -> Tensor:
        """||d||^2."""
        norm_sq = torch.zeros(1, dtype=torch.float64, device=pieces.device)
        self._directions = [
            None if g is None else g - self.sigma * self._mean(p, g) for p, g in zip(pieces.params, grads, strict=True)
        ]
        for d, is_owned in zip(self._directions, pieces.owned, strict=True):
            if d is not None and is_owned:
                norm_sq += d.double().square().sum()
        return norm_sq

    def epsilon(self, sweep: Sweep) -> tuple[Tensor, Gradients]:
        """rho / ||d||, times d."""
        assert sweep.first.probes is not None
        return sweep.rho * sweep.first.probes[0].rsqrt(), self._directions

    def _mean(self, param: nn.Parameter, grad: Tensor) -> Tensor:
        state = self.own_state.setdefault(param, {})
        state.setdefault("mean", torch.zeros_like(param, requires_grad=False))
        return local_tensor(state["mean"]).mul_(0.9).add_(grad, alpha=0.1)


def build(optim: Any, inner: Optimizer, model: nn.Module) -> TwoPass:
    return TwoPass(inner, Friendly(optim.radius, optim.sigma), model=model, max_skipped=optim.max_skipped)


ASCENTS.add(Part("friendly", FriendlyKeys, build))
