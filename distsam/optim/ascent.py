"""Where SAM and its kin look before they step: an ascent says how far to go up, and what to go down along.

Legend: w weights, g gradient, epsilon the perturbation, h gradient at w + epsilon; P parameters of the optimizer, the
cores of the networks first.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from distsam.balance import FirstPass, SecondPass
from distsam.balance.meter import Gradients
from distsam.optim.table import TableCache
from distsam.sharding import Pieces
from distsam.tensornet import CoreNetwork

SCOPES = ("global", "network", "core")


@dataclass
class Sweep:
    """The step under way, as an ascent sees it. Local pieces, in the order of `pieces.params`; None for no gradient.

    Attributes:
        pieces: weights and gradients of this rank.
        step: its number; the first is 1.
        grads: P pieces of g, as they were measured.
        first: what the pass at w measured, the same on every rank; `first.squares` has a number for each parameter.
        rho: radius: one number, or (P,) float64 where groups differ.
        perturbed_grads: P pieces of h, which the base is about to step along; None where there was no second pass.
        second: what the pass at w + epsilon measured; None before, and where there was none.
    """

    pieces: Pieces
    step: int
    grads: list[Tensor | None]
    first: FirstPass
    rho: float | Tensor
    perturbed_grads: list[Tensor | None] | None = None
    second: SecondPass | None = None


class Ascent(Protocol):
    """One member of the SAM family. It derives from this class and writes `epsilon`, and of the rest what it needs.

    Sums over all ranks come from `probes` and `second_probes`: they travel with what is measured anyway, so that an
    ascent costs no collective. All methods are called on every rank, under no_grad, and must not read the device.

    Attributes:
        name: what its state and counters are named by.
        rho: radius of a parameter group that does not give its own; groups hold it under the key "rho".
        networks: the networks of whose cores it reads the norms one by one; () for none.
        own_state: parameter -> name -> tensor made by torch.zeros_like(parameter): what a checkpoint must keep. It
            changes in `combine`, which a step that is skipped does not reach. A member without state leaves it empty.
    """

    name: str
    rho: float
    networks: tuple[CoreNetwork, ...]
    own_state: dict[nn.Parameter, dict[str, Tensor]]

    def wants_second(self, step: int) -> bool:
        """Does step number `step` (the first is 1) have a second pass? Else the base steps along g, as combined."""
        return True

    def probes(self, pieces: Pieces, grads: Gradients) -> Tensor | None:
        """1-D float64 sums over what this rank owns (`pieces.owned`) after the first pass: see `Sweep.first.probes`."""
        return None

    def epsilon(self, sweep: Sweep) -> tuple[float | Tensor, Gradients]:
        """The perturbation, as scales times directions.

        Returns:
            scales: () or (P,) float64 on the device, or a number. One that is not finite counts as 0.
            directions: P local pieces, or None for a parameter that stays; `sweep.grads` for the gradient itself,
                which costs no copy. They are kept until the step is over and must not be changed.
        """
        ...

    def second_probes(self, sweep: Sweep) -> Tensor | None:
        """As `probes`, after the second pass: see `Sweep.second.probes`."""
        return None

    def combine(self, sweep: Sweep) -> Tensor | None:
        """Make of the gradients in place what the base is to step along; by default they stay.

        Those are `sweep.perturbed_grads`, to be changed in place; `sweep.grads` in a step without a second pass.

        Returns:
            () float64 squared norm of the result over all parameters and ranks, for clipping; None where they stay.
        """
        return None

    def own_counters(self) -> Mapping[str, Tensor | int]:
        """What it counts, "<name>/<what>" -> number, on the device where it is counted there."""
        return {}

    def load_own_counters(self, counters: Mapping[str, int]) -> None:
        """Restore what `own_counters` gave."""
        return None


class GradientAscent(Ascent):
    """epsilon = rho g / ||g||: SAM's.

    Args:
        rho: radius, in parameter units.
        scope: whose norm: "global" that of all gradients, "network" each network's own, the remaining parameters'
            together, "core" each core's own, the remaining parameters' together.
        networks: for the scopes "network" and "core".

    Source: arXiv:2010.01412, Algorithm 1; scopes "network" and "core" are ours.
    """

    name = "sam"

    def __init__(self, rho: float, scope: str, networks: Sequence[CoreNetwork]) -> None:
        self.rho = rho
        self.scope = scope
        self.networks = tuple(networks)
        self.own_state = {}
        self._tables = TableCache(self.networks)

    def epsilon(self, sweep: Sweep) -> tuple[float | Tensor, Gradients]:
        """rho / norm, times the gradients."""
        first, rho = sweep.first, sweep.rho
        if self.scope != "global":
            return self._norms_sq(first).rsqrt() * rho, sweep.grads
        if first.is_on_cpu and isinstance(rho, float):
            norm_sq = first.on_host[0]
            return (rho / math.sqrt(norm_sq) if norm_sq > 0 else 0.0), sweep.grads
        return first.grad_norm_sq.rsqrt() * rho, sweep.grads

    def _norms_sq(self, first: FirstPass) -> Tensor:
        """(P,) float64 the squared norm by which each parameter's radius is measured."""
        gamma = first.gamma
        if self.scope == "network":
            table = self._tables.get(first, (True,) * sum(len(n.cores) for n in self.networks))
            own = table.fold(first.of_all_cores()[0])
            gamma = table.unfold(table.each(lambda _, total: total, own, table.row_sum(own)), gamma)
        rest = first.gamma_rest.expand(len(first.squares) - len(gamma))
        return torch.cat([gamma, rest])
