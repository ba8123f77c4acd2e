"""rho and alpha without a search: from the norms of the weights at the start, before the first step."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from distsam.balance.norms import norms
from distsam.tensornet import core_networks

# Length of SAM's whole perturbation, relative to that of all weights.
REACH = 0.001
# Change of a core by BAR, relative to that of its entries by a step of Adam.
PULL = 0.01
DIGITS = 3


def auto_rho(model: nn.Module, scope: str = "global") -> float:
    """SAM's radius: a fixed part of the length of the weights, rho = REACH ||w_0|| / sqrt(n).

    Args:
        model: whole, at its start w_0. Parameters that are frozen do not count.
        scope: SAM's. n is how many perturbations of length rho it makes: 1 for "global", one a network or core for the
            others, and one for the remaining parameters; so all together have the same length under each.

    Returns:
        The radius, to DIGITS digits: written into a config as it is printed, it gives the same run.
    """
    return _rounded(REACH * math.sqrt(_total_sq(model) / _num_radii(model, scope)))


def auto_das_alpha(model: nn.Module, norm: str = "cores") -> float:
    """DAS's strength: that which matches SAM with `auto_rho`."""
    return auto_rho(model, "network" if norm == "network" else "global")


def auto_bar_alpha(model: nn.Module) -> float:
    """BAR's strength: PULL / rms(w_0) of the cores' entries."""
    cores = [core for network in core_networks(model) for core in network.cores if core.requires_grad]
    total_sq, count = _sum_sq(cores), sum(core.numel() for core in cores)
    return _rounded(PULL * math.sqrt(count / total_sq)) if total_sq else 0.0


def _total_sq(model: nn.Module) -> float:
    return _sum_sq([p for p in model.parameters() if p.requires_grad])


@torch.no_grad()
def _sum_sq(params: Sequence[nn.Parameter]) -> float:
    return float(norms([p.detach() for p in params], is_exact=True).square().sum()) if params else 0.0


def _num_radii(model: nn.Module, scope: str) -> int:
    if scope == "global":
        return 1
    networks = core_networks(model)
    moved = [{id(core) for core in network.cores if core.requires_grad} for network in networks]
    cores = set().union(*moved)
    has_rest = any(p.requires_grad and id(p) not in cores for p in model.parameters())
    return max(1, (len(cores) if scope == "core" else sum(map(bool, moved))) + has_rest)


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
