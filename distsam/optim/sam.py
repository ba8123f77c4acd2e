"""SAM: the base step with the gradient taken at the worst nearby weights, right on any sharding.

Legend: w weights, g gradient, epsilon = rho g / ||g||, g~ gradient at w + epsilon.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from distsam.balance import FirstPass
from distsam.optim.perturbation import Perturbation
from distsam.optim.replay import Replay
from distsam.optim.table import TableCache
from distsam.optim.wrapper import Closure, Wrapper, descend
from distsam.sharding import discard_pass
from distsam.tensornet import CoreNetwork, core_networks

SCOPES = ("global", "network", "core")


class SAM(Wrapper):
    """Sharpness-aware minimisation around any torch optimizer, with the norm over all shards on all ranks.

    epsilon = rho g / ||g||; the base then steps from w with the gradient at w + epsilon. The weights come back bit for
    bit, from a copy, also when the second pass raises. The perturbation uses the raw gradient, without the base's
    weight decay. With a closure the second pass sees the same random numbers as the first (dropout), on this rank's CPU
    and GPU; in a loop without one that is the caller's to do.

    Args:
        base_optimizer: any torch optimizer, or DAS or BAR: SAM(DAS(AdamW(...))). Those use the first pass.
        rho: radius, in parameter units; 0 gives the base's step at the cost of two gradients.
        scope: whose norm the radius is measured by. "global" all gradients of the optimizer, one perturbation of
            length rho (the published SAM); "network" each network by its own norm, the remaining parameters
            together by theirs; "core" each core by its own, the remaining parameters together by theirs.
        model: needed by the scopes "network" and "core", and for BatchNorm: its running statistics are then
            updated by the first pass only.
        max_skipped: so many steps in a row with a non-finite loss or gradient raise TrainingDiverged.

    A zero gradient gives epsilon = 0. If the loss or a gradient of either pass is not finite on any rank, all ranks
    skip the step together: weights and base state stay as they were.

    Collectives: two small all_reduces per step (see Meter), beside those of the two passes; every rank calls step.

    Source: arXiv:2010.01412, Algorithm 1; scopes "network" and "core" are ours.
    """

    def __init__(
        self,
        base_optimizer: Optimizer,
        rho: float = 0.05,
        scope: str = "global",
        *,
        model: nn.Module | None = None,
        max_skipped: int = 10,
    ) -> None:
        super().__init__(base_optimizer, max_skipped)
        if not 0 <= rho < float("inf"):
            raise ValueError(f"rho={rho}: the radius is a number of at least 0")
        if scope not in SCOPES:
            raise ValueError(f"scope={scope!r}: use one of {', '.join(SCOPES)}")
        if scope != "global" and model is None:
            raise ValueError(f"scope={scope!r} needs the networks: pass model=, after it was sharded")
        self.rho = rho
        self.scope = scope
        self._replay = Replay(model)
        self._scope_networks = (
            () if scope == "global" or model is None else tuple(_moved(core_networks(model), self.param_groups))
        )
        self._tables = TableCache(self._scope_networks)
        self._perturbation = Perturbation()
        self._pending: tuple[FirstPass, Tensor, Sequence[Tensor | None], Tensor] | None = None

    @property
    def networks(self) -> tuple[CoreNetwork, ...]:
        """The networks whose norms set the radius; none for the global scope."""
        return self._scope_networks

    def apply(self, first: FirstPass) -> None:
        """Move the weights by the gradients in place, those of the perturbed point."""
        descend(self.base, first)

    def step(  # type: ignore[override]
        self, closure: Closure | None = None, *, perturbed_loss: Tensor | float | None = None
    ) -> Tensor | float | None:
        """One SAM step.

        Args:
            closure: zeroes the gradients, runs forward and backward, returns the loss; called twice. Without one,
                `with sam.perturbed():` has done both passes, and this finishes the step.
            perturbed_loss: without a closure, this rank's loss of the second pass, if it is to be reported; on every
                rank or on none.

        Returns:
            What the closure returned at the unperturbed weights: this rank's loss.

        Raises:
            RuntimeError: no closure and no `perturbed` before.
            TrainingDiverged: too many skipped steps in a row.
        """
        if closure is None:
            self._finish(perturbed_loss)
            return None
        with self._replay.recording():
            loss = self.evaluate(closure)
        with self.perturbed(loss), self._replay.again():
            second_loss = self.evaluate(closure)
        self._finish(second_loss)
        return loss

    @contextmanager
    def perturbed(self, loss: Tensor | float | None = None) -> Iterator[None]:
        """Weights at w + epsilon inside, w again afterwards, bit for bit, whatever happens inside.

        For loops without a closure: backward; `with sam.perturbed(): backward again`; `sam.step()`. On entry the
        first pass is measured and `.grad` is emptied; inside, run forward and backward on the same batch. The two
        losses are reported, and looked at for being finite, if they are given to `perturbed` and `step`.

        Args:
            loss: this rank's loss at w, if it is to be reported; on every rank or on none.

        Collectives: one small all_reduce on entry; every rank enters.

        Raises:
            RuntimeError: the weights are perturbed already.
        """
        if self._perturbation.is_inside:
            raise RuntimeError("the weights are perturbed already: inside sam.perturbed() run the second pass only")
        self._pending = None
        first, grads = self.guard.first_pass(loss)
        meter = self.guard.meter
        radius, radius_rest = self._radii(first)
        scales = radius_rest
        if self.scope != "global":
            scales = torch.cat([radius, radius_rest.expand(len(meter.params) - meter.num_cores)])
        meter.clear_gradients()
        epsilon_factors = self._perturbation.enter(meter.pieces, grads, scales, radius)
        try:
            with self._replay.keeping_statistics():
                yield
        except BaseException:
            discard_pass(meter.params)
            raise
        finally:
            self._perturbation.leave()
        self._pending = (first, radius, grads, epsilon_factors)

    def _finish(self, second_loss: Tensor | float | None) -> None:
        """Measure the second pass, decide, step."""
        if self._pending is None:
            raise RuntimeError(
                "SAM.step() without a closure: run both passes first, the second one inside "
                "`with sam.perturbed():`, or pass a closure"
            )
        first, radius, grads, factors = self._pending
        self._pending = None
        second = self.guard.second_pass(second_loss, grads, factors)
        if self.guard.accepts(first, second):
            self.apply(first)
        self.guard.finish(first, second, radius)

    def _radii(self, first: FirstPass) -> tuple[Tensor, Tensor]:
        """(N,) and () float64: rho / norm for each core and for the rest; 0 where the norm is 0 or not finite."""
        if self.scope == "global":
            radius = self._radius(first.grad_norm_sq)
            return radius.expand_as(first.gamma), radius
        norms_sq = first.gamma
        if self.scope == "network":
            table = self._tables.get(first, (True,) * sum(len(n.cores) for n in self._scope_networks))
            gamma = table.fold(first.gamma)
            norms_sq = table.unfold(gamma.sum(1, keepdim=True).expand_as(gamma), first.gamma)
        return self._radius(norms_sq), self._radius(first.gamma_rest)

    def _radius(self, norm_sq: Tensor) -> Tensor:
        """rho / norm; 0 where the norm is 0, which gives infinity, or not finite."""
        return torch.nan_to_num(self.rho * norm_sq.rsqrt(), nan=0.0, posinf=0.0)


def _moved(networks: Sequence[CoreNetwork], param_groups: Sequence[dict[str, Any]]) -> list[CoreNetwork]:
    """Those networks of which the optimizer has a core: the model may hold others."""
    moved = {id(p) for group in param_groups for p in group["params"]}
    return [n for n in networks if not moved.isdisjoint(map(id, n.cores))]
