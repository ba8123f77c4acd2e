"""What runs on every rank: a small model of two networks and a bias, trained on a slice of the same entries."""

import os
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import distsam
from distsam.optim import Plain, Wrapper
from distsam.sharding import World, make_mesh
from distsam.sharding.collectives import rank, world_size

SHAPE = (8, 4, 12)
NUM_ENTRIES = 101  # divided by no world size: slices are uneven


class TwoNetworks(nn.Module):
    """The sum of a Tucker and a TT network plus a bias that no network owns (3 elements: no even shard)."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = distsam.TensorNetwork(distsam.tucker(SHAPE, (4, 2, 4)), generator=generator, dtype=dtype)
        self.second = distsam.TensorNetwork(distsam.tt(SHAPE, 4), generator=generator, dtype=dtype)
        self.bias = nn.Parameter(torch.full((3,), 0.1, dtype=dtype))

    def forward(self, indices: Tensor) -> Tensor:
        return self.first.at(indices) + self.second.at(indices) + self.bias.sum()


def entries(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    indices = torch.stack([torch.randint(n, (NUM_ENTRIES,), generator=generator) for n in SHAPE], 1)
    return indices, torch.randn(NUM_ENTRIES, generator=generator, dtype=torch.float64).to(dtype)


def this_world() -> World:
    device = torch.device("cuda", rank()) if torch.distributed.get_backend() == "nccl" else torch.device("cpu")
    return World(rank(), world_size(), rank(), device)


def build(
    plan: str, replicas: int, dtype: torch.dtype, method: str, lr: float = 0.05
) -> tuple[nn.Module, Wrapper, Any]:
    """The model on its mesh, its optimizer, and a closure over this rank's slice; alone without a process group."""
    model: nn.Module = TwoNetworks(dtype)
    if torch.distributed.is_initialized():
        world = this_world()
        model = distsam.shard(model.to(world.device), make_mesh(world, plan, replicas), plan)
    optimizer = chain(method, model, lr)
    indices, values = entries(dtype)
    mine = slice_of(NUM_ENTRIES)

    def closure() -> Tensor:
        optimizer.zero_grad()
        device = next(model.parameters()).device
        error = model(indices[mine].to(device)) - values[mine].to(device)
        loss = error.square().sum() * world_size() / NUM_ENTRIES
        loss.backward()
        return loss

    return model, optimizer, closure


def slice_of(count: int) -> slice:
    bounds = [count * r // world_size() for r in range(world_size() + 1)]
    return slice(bounds[rank()], bounds[rank() + 1])


def chain(method: str, model: nn.Module, lr: float) -> Wrapper:
    base = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    networks = distsam.core_networks(model)
    return {
        "base": lambda: Plain(base),
        "sam": lambda: distsam.SAM(base, rho=0.1),
        "das": lambda: distsam.DAS(base, networks, alpha=0.5),
        "nbar": lambda: distsam.BAR(base, networks, alpha=0.5, rule="nbar"),
        "obar": lambda: distsam.BAR(base, networks, alpha=0.5, rule="obar"),
        "sam+das": lambda: distsam.SAM(distsam.DAS(base, networks, alpha=0.5), rho=0.1),
        "sam:network": lambda: distsam.SAM(base, rho=0.1, scope="network", model=model),
        "sam:core": lambda: distsam.SAM(base, rho=0.1, scope="core", model=model),
    }[method]()


def full(tensor: Tensor) -> np.ndarray:
    whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole.detach().cpu().numpy().copy()


def train(plan: str, replicas: int, dtype: str, method: str, steps: int = 20) -> dict[str, Any]:
    """Parameters after `steps` steps, and the last snapshot."""
    model, optimizer, closure = build(plan, replicas, getattr(torch, dtype), method)
    coordinator = distsam.BalanceCoordinator(model, optimizer, every=5)
    for _ in range(steps):
        optimizer.step(closure)
    return {
        "parameters": [full(p) for p in model.parameters()],
        "snapshot": coordinator.snapshot(),
        "pid": os.getpid(),
    }
