"""What runs on every rank: a small model of two networks and a bias, trained on a slice of the same entries."""

import os
from collections import Counter
from typing import Any

import numpy as np
import torch
from collective_count import CollectiveCount
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import distsam
from distsam import sharding
from distsam.balance import Meter
from distsam.optim import Plain, Wrapper
from distsam.sharding import Fsdp, Plan, World, make_layout
from distsam.sharding.collectives import rank, world_size

SHAPE = (8, 4, 12)
NUM_ENTRIES = 101  # divided by no world size: slices are uneven


class TwoNetworks(nn.Module):
    """The sum of a Tucker and a TT network plus a bias that no network owns (3 elements: no even shard)."""

    def __init__(self, dtype: torch.dtype, widen: int = 1) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        shape = tuple(n * widen for n in SHAPE)
        # Unequal norms: a comparison of equal ones would be decided by rounding.
        self.first = distsam.TensorNetwork(
            distsam.tucker(shape, (4, 2, 4)), norms=(1, 2, 3, 4), generator=generator, dtype=dtype
        )
        self.second = distsam.TensorNetwork(distsam.tt(shape, 4 * widen), generator=generator, dtype=dtype)
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


def plan_of(name: str, replicas: int = 1) -> Plan:
    return Fsdp(replicas) if name == "fsdp" else sharding.Replicate()


def build(
    plan: str, replicas: int, dtype: torch.dtype, method: str, lr: float = 0.05, widen: int = 1
) -> tuple[nn.Module, Wrapper, Any]:
    """The model on its mesh, its optimizer, and a closure over this rank's slice; alone without a process group."""
    model: nn.Module = TwoNetworks(dtype, widen)
    if torch.distributed.is_initialized():
        world = this_world()
        model = distsam.shard(model.to(world.device), make_layout(world, plan_of(plan, replicas)).mesh, plan)
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


def count_step(plan: str, replicas: int, method: str, widen: int) -> tuple[Counter[Any], Counter[Any]]:
    """Collectives, by (name, bytes), that one step issues beyond its passes; and those of the passes."""
    model, optimizer, closure = build(plan, replicas, torch.float32, method, widen=widen)
    distsam.BalanceCoordinator(model, optimizer, every=1)
    num_passes = 2 if "sam" in method else 1
    optimizer.step(closure)  # state, meter and buffers come to be
    with CollectiveCount() as passes:
        for _ in range(num_passes):
            closure()
    with CollectiveCount() as step:
        optimizer.step(closure)
    return Counter(step.sizes) - Counter(passes.sizes), Counter(passes.sizes) - Counter(step.sizes)


class Chain(nn.Module):
    """One TT network of so many cores."""

    def __init__(self, num_cores: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.network = distsam.TensorNetwork(distsam.tt((4,) * num_cores, 2), generator=generator)

    def forward(self, indices: Tensor) -> Tensor:
        return self.network.at(indices)


def count_chain_step(plan: str, method: str, num_cores: int) -> list[tuple[str, int]]:
    """Name and bytes of each collective that a step of a network of so many cores issues beyond its passes."""
    model = distsam.shard(Chain(num_cores), make_layout(this_world(), plan_of(plan)).mesh, plan)
    optimizer = chain(method, model, 0.01)
    distsam.BalanceCoordinator(model, optimizer)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(torch.zeros(2, num_cores, dtype=torch.int64)).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with CollectiveCount() as passes:
        for _ in range(2 if "sam" in method else 1):
            closure()
    with CollectiveCount() as step:
        optimizer.step(closure)
    return list((Counter(step.sizes) - Counter(passes.sizes)).elements())


def finite_where(plan: str) -> list[bool]:
    """Are the weights finite: as they are, and when the last element of the last one, on one rank, is not."""
    model, _, _ = build(plan, 1, torch.float32, "base")
    answers = [sharding.are_finite(model.parameters())]
    if rank() == world_size() - 1:
        with torch.no_grad():
            sharding.local_tensor(next(model.parameters())).view(-1)[-1:] = float("inf")
    return [*answers, sharding.are_finite(model.parameters())]


def stop_on_one_rank() -> list[bool]:
    """Whether each of four steps ends with a stop, when the last rank asks before the third."""
    _, optimizer, closure = build("replicate", 1, torch.float64, "sam")
    seen = []
    for step in range(4):
        if step == 2 and rank() == world_size() - 1:
            optimizer.request_stop()
        optimizer.step(closure)
        seen.append(optimizer.stop_requested)
    return seen


def measure_mixed(world: int) -> dict[str, Any]:
    """A meter over cores placed in every way, against the norms of the full tensors."""
    mesh = init_device_mesh("cpu", (world,))
    square = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("replicate", "shard"))
    places = [
        (mesh, [Shard(0)]),
        (mesh, [Replicate()]),
        (square, [Replicate(), Shard(1)]),
        (square, [Shard(0), Shard(1)]),
        (square["shard"], [Shard(0)]),
        (None, None),
    ]
    generator = torch.Generator().manual_seed(3)
    # 1 x 7: a Shard(0) of it is empty on every rank but the first.
    shapes = [(7, 3), (4, 6), (3, 8), (8, 8), (5, 2), (3, 3), (1, 7)]
    whole = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    grads = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    params = []
    for w, g, (on, how) in zip(whole, grads, [*places, places[0]], strict=True):
        param = nn.Parameter(w.clone() if on is None else distribute_tensor(w.clone(), on, how))
        param.grad = g.clone() if on is None else distribute_tensor(g.clone(), on, how)
        params.append(param)
    meter = Meter(params, [distsam.CoreNetwork("mixed", tuple(params[:-1]), distsam.tt((2,) * 6, 1))])
    with CollectiveCount() as count:
        first, _ = meter.first_pass(torch.tensor(2.0))
    return {
        "calls": dict(count.calls),
        "gamma": first.gamma.tolist(),
        "gamma_rest": float(first.gamma_rest),
        "norms_sq": [] if first.core_norms_sq is None else first.core_norms_sq.tolist(),
        "loss": None if first.loss is None else float(first.loss),
        "expected_gamma": [float(g.square().sum()) for g in grads],
        "expected_norms_sq": [float(w.square().sum()) for w in whole],
    }
