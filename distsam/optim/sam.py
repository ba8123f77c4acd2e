"""SAM: the base step with the gradient taken at the worst nearby weights, right on any sharding."""

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from distsam.optim.ascent import SCOPES, GradientAscent
from distsam.optim.two_pass import TwoPass
from distsam.tensornet import CoreNetwork, core_networks


class SAM(TwoPass):
    """Sharpness-aware minimisation around any torch optimizer, with the norm over all shards on all ranks.

    epsilon = rho g / ||g||; the base then steps from w with the gradient at w + epsilon. See TwoPass for what a step
    promises. A zero gradient gives epsilon = 0.

    Args:
        base_optimizer: any torch optimizer, or DAS or BAR: SAM(DAS(AdamW(...))). Those use the first pass.
        rho: radius, in parameter units; 0 gives the base's step at the cost of two gradients. Of parameter groups that
            do not give their own: they hold it under the key `group_key("rho")`, where a schedule may change it.
        scope: whose norm the radius is measured by. "global" all gradients of the optimizer, one perturbation of
            length rho (the published SAM); "network" each network by its own norm, the remaining parameters
            together by theirs; "core" each core by its own, the remaining parameters together by theirs.
        model: needed by the scopes "network" and "core"; and where it is compiled, see TwoPass.
        max_skipped: so many steps in a row with a non-finite loss or gradient raise TrainingDiverged.

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
        if scope not in SCOPES:
            raise ValueError(f"scope={scope!r}: use one of {', '.join(SCOPES)}")
        if scope != "global" and model is None:
            raise ValueError(f"scope={scope!r} needs the networks: pass model=, after it was sharded")
        networks: Sequence[CoreNetwork] = ()
        if scope != "global" and model is not None and isinstance(base_optimizer, Optimizer):
            networks = _moved(core_networks(model), base_optimizer.param_groups)
            if not networks:
                raise ValueError(
                    f"scope={scope!r}: the optimizer moves no core of a tensor network; use scope='global'"
                )
        super().__init__(base_optimizer, GradientAscent(rho, scope, networks), model=model, max_skipped=max_skipped)
        self.scope = scope


def _moved(networks: Sequence[CoreNetwork], param_groups: Sequence[dict[str, Any]]) -> list[CoreNetwork]:
    """Those networks of which the optimizer has a core: the model may hold others."""
    moved = {id(p) for group in param_groups for p in group["params"]}
    return [n for n in networks if not moved.isdisjoint(map(id, n.cores))]
