"""A model of a Tucker and a TT network and a bias, for formulas that are written out on all of it."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

import distsam

SHAPE = (5, 4, 6)
ETA = 1e-3


class TwoNetworks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        tucker, tt = distsam.tucker(SHAPE, (3, 2, 4)), distsam.tt(SHAPE, 3)
        self.a = distsam.TensorNetwork(tucker, norms=(4, 1, 2, 3), generator=generator, dtype=torch.float64)
        self.b = distsam.TensorNetwork(tt, norms=(1, 3, 2), generator=generator, dtype=torch.float64)
        self.bias = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def loss(self) -> Tensor:
        target = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        return (self.a.dense() + self.b.dense() + self.bias - target).square().sum()


def network_of(cores: Sequence[nn.Parameter]) -> distsam.CoreNetwork:
    """Any parameters as one network; its spec says nothing of them but their number."""
    return distsam.CoreNetwork("n", tuple(cores), distsam.tt((2,) * len(cores), 1))


def squares(tensors: list[Tensor]) -> Tensor:
    return torch.stack([t.square().sum() for t in tensors])


def after_one_step(model: TwoNetworks, optimizer: torch.optim.Optimizer) -> list[list[Tensor]]:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model.loss()
        loss.backward()
        return loss

    optimizer.step(closure)
    return [[c.detach().clone() for c in n.cores] for n in distsam.core_networks(model)]


class Still(torch.optim.SGD):
    """Moves nothing."""

    def step(self, closure: object = None) -> None:
        """Leave the weights."""
