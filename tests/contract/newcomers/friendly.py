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
        pairs = zip(pieces.params, grads, strict=True)
        self._directions = [None if g is None else g - self.sigma * self._mean(p) for p, g in pairs]
        owned = [d for d, is_owned in zip(self._directions, pieces.owned, strict=True) if d is not None and is_owned]
        return torch.tensor([sum(float(d.double().square().sum()) for d in owned)], dtype=torch.float64)

    def epsilon(self, sweep: Sweep) -> tuple[Tensor, Gradients]:
        """rho / ||d||, times d."""
        assert sweep.first.probes is not None
        return sweep.rho * sweep.first.probes[0].rsqrt(), self._directions

    def combine(self, sweep: Sweep) -> None:
        """The mean takes up g here, where the step is known to be finite on every rank."""
        for param, grad in zip(sweep.pieces.params, sweep.grads, strict=True):
            if grad is not None:
                self._mean(param).mul_(0.9).add_(grad, alpha=0.1)

    def _mean(self, param: nn.Parameter) -> Tensor:
        state = self.own_state.setdefault(param, {})
        return local_tensor(state.setdefault("mean", torch.zeros_like(param, requires_grad=False)))


def build(optim: Any, inner: Optimizer, model: nn.Module) -> TwoPass:
    return TwoPass(inner, Friendly(optim.radius, optim.sigma), model=model, max_skipped=optim.max_skipped)


ASCENTS.add(Part("friendly", FriendlyKeys, build))
