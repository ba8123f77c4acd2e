"""The optimizers that the tests of this folder run over: a new one adds a line to METHODS and inherits them all."""

from collections.abc import Callable

import pytest
import torch
from ascents import Adaptive, EveryWithMemory
from torch import Tensor, nn
from torch.optim import Optimizer

import distsam
from distsam.optim import Plain, TwoPass, Wrapper

Build = Callable[[Optimizer, nn.Module], Wrapper]

METHODS: dict[str, Build] = {
    "plain": lambda base, model: Plain(base),
    "sam": lambda base, model: distsam.SAM(base, rho=0.1),
    "sam:network": lambda base, model: distsam.SAM(base, rho=0.1, scope="network", model=model),
    "sam:core": lambda base, model: distsam.SAM(base, rho=0.1, scope="core", model=model),
    "asam": lambda base, model: TwoPass(base, Adaptive(rho=0.1)),
    "memory": lambda base, model: TwoPass(base, EveryWithMemory(rho=0.1, every=2)),
    "das": lambda base, model: distsam.DAS(base, distsam.core_networks(model), alpha=0.1),
    "das:global": lambda base, model: distsam.DAS(base, distsam.core_networks(model), alpha=0.1, norm="global"),
    "das:network": lambda base, model: distsam.DAS(base, distsam.core_networks(model), alpha=0.1, norm="network"),
    "nbar": lambda base, model: distsam.BAR(base, distsam.core_networks(model), alpha=0.1),
    "obar": lambda base, model: distsam.BAR(base, distsam.core_networks(model), alpha=0.1, rule="obar"),
    "sam+das": lambda base, model: distsam.SAM(distsam.DAS(base, distsam.core_networks(model), alpha=0.1), rho=0.1),
    "das+nbar": lambda base, model: distsam.DAS(
        distsam.BAR(base, distsam.core_networks(model), alpha=0.1), distsam.core_networks(model), alpha=0.1
    ),
}
BASES: dict[str, Callable[[nn.Module], Optimizer]] = {
    "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
    "adamw": lambda model: torch.optim.AdamW(model.parameters(), lr=0.01),
    "rmsprop": lambda model: torch.optim.RMSprop(model.parameters(), lr=0.01),
}

every_method = pytest.mark.parametrize("build", METHODS.values(), ids=METHODS.keys())


class Model(nn.Module):
    """Two networks, a bias, a frozen parameter and one that the loss never sees."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.left = distsam.TensorNetwork(distsam.tt((4, 3, 5), 3), norms=(1, 2, 3), generator=generator)
        self.right = distsam.TensorNetwork(distsam.cp((4, 3, 5), 2), norms=(3, 1, 2), generator=generator)
        self.bias = nn.Parameter(torch.tensor([0.3]))
        self.frozen = nn.Parameter(torch.tensor([1.5]), requires_grad=False)
        self.unused = nn.Parameter(torch.tensor([2.5]))

    def forward(self) -> Tensor:
        return (self.left.dense() + self.right.dense() + self.bias) * self.frozen


TARGET = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(1))


def closure_of(model: nn.Module, optimizer: Optimizer) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (model() - TARGET).square().mean()
        loss.backward()
        return loss

    return closure


def run(build: Build, base: str, steps: int) -> tuple[nn.Module, Wrapper]:
    model = Model()
    optimizer = build(BASES[base](model), model)
    for _ in range(steps):
        optimizer.step(closure_of(model, optimizer))
    return model, optimizer


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def are_equal(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))
