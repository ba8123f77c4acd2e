"""Two members of the SAM family as a newcomer would write them: one needs a sum of its own, one has state."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from distsam.balance.meter import Gradients
from distsam.optim import Ascent, Sweep
from distsam.sharding import Pieces, local_tensor

SHIFT = 0.01


class Adaptive(Ascent):
    """epsilon = rho T^2 g / ||T g||, T = abs(w) + 0.01: ASAM, arXiv:2102.11600."""

    name = "asam"

    def __init__(self, rho: float) -> None:
        self.rho = rho
        self.networks = ()
        self.own_state = {}

    def probes(self, pieces: Pieces, grads: Gradients) -> Tensor:
        """||T g||^2."""
        parts = [
            ((w.abs() + SHIFT) * g).double().square().sum()
            for w, g, is_owned in zip(pieces.weights(), grads, pieces.owned, strict=True)
            if g is not None and is_owned
        ]
        return torch.stack([torch.zeros((), dtype=torch.float64, device=pieces.device), *parts]).sum().view(1)

    def epsilon(self, sweep: Sweep) -> tuple[Tensor, Gradients]:
        """rho / ||T g||, times T^2 g."""
        assert sweep.first.probes is not None
        pairs = zip(sweep.pieces.weights(), sweep.grads, strict=True)
        directions = [None if g is None else (w.abs() + SHIFT).square() * g for w, g in pairs]
        return sweep.rho * sweep.first.probes[0].rsqrt(), directions


class EveryWithMemory(Ascent):
    """Every n-th step SAM, whose gradient h is kept; the steps between go along g + h/2."""

    name = "memory"

    def __init__(self, rho: float, every: int) -> None:
        self.rho = rho
        self.every = every
        self.networks = ()
        self.own_state: dict[nn.Parameter, dict[str, Tensor]] = {}
        self.num_second = 0

    def wants_second(self, step: int) -> bool:
        """The first, and every n-th after it."""
        return (step - 1) % self.every == 0

    def probes(self, pieces: Pieces, grads: Gradients) -> Tensor:
        """||g + h/2||^2, for clipping the steps between."""
        sums = torch.zeros(1, dtype=torch.float64, device=pieces.device)
        for param, grad, is_owned in zip(pieces.params, grads, pieces.owned, strict=True):
            if grad is not None and is_owned:
                sums += (grad + self._kept(param, grad) / 2).double().square().sum()
        return sums

    def epsilon(self, sweep: Sweep) -> tuple[Tensor, Gradients]:
        """SAM's."""
        return sweep.rho * sweep.first.grad_norm_sq.rsqrt(), sweep.grads

    def combine(self, sweep: Sweep) -> Tensor | None:
        """Keep h, or add half of it."""
        grads = sweep.grads if sweep.perturbed_grads is None else sweep.perturbed_grads
        for param, grad in zip(sweep.pieces.params, grads, strict=True):
            if grad is not None and sweep.second is not None:
                self._kept(param, grad).copy_(grad)
            elif grad is not None:
                grad += self._kept(param, grad) / 2
        if sweep.second is not None:
            self.num_second += 1
            return None
        assert sweep.first.probes is not None
        return sweep.first.probes[0]

    def own_counters(self) -> Mapping[str, int]:
        """How many steps had a second pass."""
        return {"memory/num_second": self.num_second}

    def load_own_counters(self, counters: Mapping[str, int]) -> None:
        """Restore it."""
        self.num_second = counters["memory/num_second"]

    def _kept(self, param: nn.Parameter, grad: Tensor) -> Tensor:
        state = self.own_state.setdefault(param, {})
        if "kept" not in state:
            state["kept"] = torch.zeros_like(param, requires_grad=False)
        return local_tensor(state["kept"])
