"""The plans that test_plans.py runs over: a new one adds a line to PLANS and inherits every test.

Two of them are of this folder: their second axis is no data axis, and its ranks see the same batch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from methods import TARGET, Model
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

import distsam
from distsam.sharding import (
    Axes,
    Bond,
    Fsdp,
    NetworkWeights,
    Plan,
    Replicate,
    ShardPlan,
    World,
    loss_weight_of,
    make_layout,
    place_model,
)
from distsam.sharding.collectives import all_reduce_sum_, is_distributed, rank, world_size

RHO, LR, MOMENTUM, NUM_STEPS = 0.1, 0.05, 0.9, 8


@dataclass(frozen=True)
class Twins:
    """Pairs of ranks see the same data; along the data axis weights are whole or cut as by another plan."""

    inner: Plan
    name: str = "twins"
    data_axes: tuple[str, ...] = ("data",)

    def axes(self, world_size: int) -> Axes:
        twins = 2 if world_size % 2 == 0 else 1
        return (("data", world_size // twins), ("twin", twins))

    def place(
        self, named_shapes: Mapping[str, Sequence[int]], axes: Axes, networks: Sequence[NetworkWeights] = ()
    ) -> ShardPlan:
        inner = self.inner.place(named_shapes, axes[:1])
        placements = tuple((name, (*dims, None)) for name, dims in inner.placements)
        return ShardPlan(self.name, axes, self.data_axes, inner.shapes, placements)


PLANS: dict[str, Callable[[], Plan]] = {
    "replicate": Replicate,
    "fsdp": Fsdp,
    "fsdp:2": lambda: Fsdp(2),
    "twins": lambda: Twins(Replicate()),
    "twins:fsdp": lambda: Twins(Fsdp()),
    "bond": Bond,
    "bond:2": lambda: Bond(2),
}


def shapes_of(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


def train_on(name: str) -> dict[str, Any]:
    """SAM's steps on the plan, each rank with the entries of its part of the data; and what the layout says."""
    plan, model = PLANS[name](), Model().double()
    world = World(rank(), world_size(), rank(), torch.device("cpu"))
    layout = make_layout(world, plan)
    distsam.shard(model, layout.mesh, place_model(plan, model, layout.axes))
    base = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)
    optimizer = distsam.SAM(base, rho=RHO)
    coordinator = distsam.BalanceCoordinator(model, optimizer)
    target = TARGET.double().flatten()
    own = slice(layout.data_rank, None, layout.data_size)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (model().flatten()[own] - target[own]).square().sum() * layout.data_size / len(target)
        loss.backward()
        return loss

    for _ in range(NUM_STEPS):
        optimizer.step(closure)
    sums = torch.tensor([layout.loss_weight])
    if is_distributed():
        torch.distributed.all_reduce(sums)
    return {
        "parameters": [full(p) for p in model.parameters()],
        "loss": coordinator.snapshot()["train/loss"],
        "data": (layout.data_rank, layout.data_size),
        "sum_over_data": float(all_reduce_sum_(torch.tensor(layout.data_rank + 1.0), layout.data_group)),
        "weight": layout.loss_weight,
        "weight_of_model": loss_weight_of(model.parameters()),
        "sum_of_weights": float(sums),
    }


def refusal_of_another_mesh(name: str) -> str:
    """What `shard` says when the plan was made for twice as many ranks."""
    plan, model = PLANS[name](), Model().double()
    made = place_model(plan, model, plan.axes(2 * world_size()))
    try:
        distsam.shard(model, init_device_mesh("cpu", (world_size(),)), made)
    except distsam.InputError as error:
        return str(error)
    return ""


def full(tensor: Tensor) -> np.ndarray:
    whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole.detach().numpy().copy()


def reference() -> tuple[list[np.ndarray], float]:
    """The same steps by SAM's definition, in one process, in plain torch; and the loss of the last one."""
    model = Model().double()
    params = [p for p in model.parameters() if p.requires_grad and p is not model.unused]
    velocity = [torch.zeros_like(p) for p in params]

    def gradient() -> list[Tensor]:
        return list(torch.autograd.grad((model() - TARGET.double()).square().mean(), params))

    for _ in range(NUM_STEPS):
        loss = float((model() - TARGET.double()).square().mean().detach())
        grads = gradient()
        clean = [p.detach().clone() for p in params]
        norm = torch.stack([g.square().sum() for g in grads]).sum().sqrt()
        with torch.no_grad():
            for p, g in zip(params, grads, strict=True):
                p.add_(g, alpha=float(RHO / norm))
        grads = gradient()
        with torch.no_grad():
            for p, w, v, g in zip(params, clean, velocity, grads, strict=True):
                v.mul_(MOMENTUM).add_(g)
                p.copy_(w - LR * v)
    return [p.detach().numpy() for p in model.parameters()], loss
