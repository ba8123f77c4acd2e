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
from distsam.balance import Meter
from distsam.optim import Plain, Wrapper
from distsam.sharding import World, local_tensor, make_mesh
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


def build(
    plan: str, replicas: int, dtype: torch.dtype, method: str, lr: float = 0.05, widen: int = 1
) -> tuple[nn.Module, Wrapper, Any]:
    """The model on its mesh, its optimizer, and a closure over this rank's slice; alone without a process group."""
    model: nn.Module = TwoNetworks(dtype, widen)
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


def step_with_bad_gradient(plan: str, method: str, bad_pass: int, num_bad: int) -> dict[str, Any]:
    """`num_bad` steps in which rank 1's loss is infinite in one pass, then a good step."""
    model, optimizer, closure = build(plan, 1, torch.float64, method)
    optimizer.step(closure)
    calls = 0

    def spoiled() -> Tensor:
        nonlocal calls
        calls += 1
        loss = closure()
        if rank() == world_size() - 1 and calls % 2 == bad_pass % 2:
            for p in model.parameters():
                if p.grad is not None:
                    local_tensor(p.grad).fill_(float("nan"))
        return loss

    before = [full(p) for p in model.parameters()]
    momentum = [full(optimizer.state[p]["momentum_buffer"]) for p in model.parameters()]
    error = ""
    try:
        for _ in range(num_bad):
            optimizer.step(spoiled)
    except distsam.TrainingDiverged as diverged:
        error = str(diverged)
    after = [full(p) for p in model.parameters()]
    momentum_after = [full(optimizer.state[p]["momentum_buffer"]) for p in model.parameters()]
    optimizer.step(closure)
    return {
        "is_untouched": all(np.array_equal(a, b) for a, b in zip(before, after, strict=True)),
        "is_state_untouched": all(np.array_equal(a, b) for a, b in zip(momentum, momentum_after, strict=True)),
        "num_skipped": optimizer.num_skipped,
        "num_steps": optimizer.num_steps,
        "error": error,
        "moves_again": not np.array_equal(full(next(model.parameters())), after[0]),
    }


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


def partial_gradients() -> list[np.ndarray | None]:
    """Averaged gradients where only rank 0's loss knows the second parameter and no rank's the third."""
    params = nn.ParameterList(torch.full((2,), float(k)) for k in range(3))
    distsam.shard(params, make_mesh(this_world(), "replicate"), "replicate")
    loss = params[0].sum() * (rank() + 1)
    if rank() == 0:
        loss = loss + 3 * params[1].sum()
    loss.backward()
    return [None if p.grad is None else full(p.grad) for p in params]


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
    meter = Meter(params, [distsam.CoreNetwork("mixed", tuple(params[:-1]))])
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


def raise_in_second_pass(plan: str) -> dict[str, Any]:
    """A second pass that raises on every rank, inside a network; what the model says afterwards, and a good step."""
    model, optimizer, closure = build(plan, 1, torch.float64, "sam")
    optimizer.step(closure)
    indices, _ = entries(torch.float64)
    before = model(indices).detach().numpy().copy()
    calls = 0

    def raising() -> Tensor:
        nonlocal calls
        calls += 1
        return closure() if calls == 1 else model(indices + 1000).sum()

    error = ""
    try:
        optimizer.step(raising)
    except IndexError as raised:
        error = str(raised)
    after = model(indices).detach().numpy().copy()
    optimizer.step(closure)
    moved = model(indices).detach().numpy().copy()
    return {"error": error, "is_same": bool(np.array_equal(before, after)), "moved": float(np.abs(moved - after).max())}
