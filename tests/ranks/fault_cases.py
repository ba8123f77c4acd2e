"""What runs on every rank where something goes wrong: bad gradients, passes that raise, gradients that are missing."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from rank_cases import NUM_ENTRIES, build, entries, full, plan_of, this_world
from torch import Tensor, nn

import distsam
from distsam.sharding import Replicate, local_tensor, make_layout
from distsam.sharding.collectives import is_distributed, rank, world_size


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


class Accident:
    """A closure that is `closure` until pass number `which`, which raises inside a network, in `where`."""

    def __init__(self, model: nn.Module, closure: Callable[[], Tensor], which: int, where: str) -> None:
        self.model, self.closure, self.which, self.where = model, closure, which, where
        self.calls = 0
        self.had_gradient: list[bool] = []

    def __call__(self) -> Tensor:
        self.calls += 1
        if self.calls < self.which:
            return self.closure()
        indices, _ = entries(torch.float64)
        self.model.zero_grad()
        if self.where == "forward":
            return self.model(indices + 1000).sum()
        # The hook comes late: backward has been through the second network and the bias by then.
        early = self.model.first.at(indices)
        early.register_hook(self._raise_late)
        (early + self.model.second.at(indices) + self.model.bias.sum()).square().sum().backward()
        raise AssertionError("nothing raised")

    def _raise_late(self, _: Tensor) -> None:
        self.had_gradient = [p.grad is not None for p in self.model.parameters()]
        raise IndexError("in backward")


def raise_in_pass(plan: str, which: int, where: str, is_by_hand: bool) -> dict[str, Any]:
    """A step one of whose passes raises on every rank, inside a network; then a good step, and the same without."""
    model, optimizer, closure = build(plan, 1, torch.float64, "sam")
    optimizer.step(closure)
    indices, _ = entries(torch.float64)
    before = model(indices).detach().numpy().copy()
    accident = Accident(model, closure, which, where)
    error = ""
    try:
        if is_by_hand:
            accident()
            with optimizer.perturbed():
                accident()
        else:
            optimizer.step(accident)
    except IndexError as raised:
        error = str(raised)
    after = model(indices).detach().numpy().copy()
    optimizer.step(closure)
    undisturbed, its_optimizer, its_closure = build(plan, 1, torch.float64, "sam")
    for _ in range(2):
        its_optimizer.step(its_closure)
    pairs = zip(model.parameters(), undisturbed.parameters(), strict=True)
    return {
        "error": error,
        "is_half_done": any(accident.had_gradient) and not all(accident.had_gradient),
        "is_same": bool(np.array_equal(before, after)),
        "is_undisturbed": all(np.array_equal(full(p), full(q)) for p, q in pairs),
    }


def train_bias_of_first_slice(plan: str, method: str) -> list[np.ndarray]:
    """Parameters after 5 steps where only the first of two slices of the entries knows the bias.

    Under "fsdp" the bias is all that is whole, so the second rank's backward reaches nothing of it.
    """
    model, optimizer, _ = build(plan, 1, torch.float64, method)
    indices, values = entries(torch.float64)
    half = NUM_ENTRIES // 2
    slices = [slice(0, half), slice(half, NUM_ENTRIES)]

    def loss_of(part: int) -> Tensor:
        mine = slices[part]
        guess = model.first.at(indices[mine]) + model.second.at(indices[mine])
        return (guess + (model.bias.sum() if part == 0 else 0) - values[mine]).square().mean()

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(rank()) if is_distributed() else (loss_of(0) + loss_of(1)) / 2
        loss.backward()
        return loss

    for _ in range(5):
        optimizer.step(closure)
    return [full(p) for p in model.parameters()]


def partial_gradients() -> list[np.ndarray | None]:
    """Averaged gradients where rank 0's loss alone knows the second parameter, none the third; the last was frozen."""
    params = nn.ParameterList(torch.full((2,), float(k)) for k in range(4))
    params[3].requires_grad_(False)
    distsam.shard(params, make_layout(this_world(), Replicate()).mesh, "replicate")
    params[3].requires_grad_(True)
    loss = (params[0].sum() + params[3].sum()) * (rank() + 1)
    if rank() == 0:
        loss = loss + 3 * params[1].sum()
    loss.backward()
    return [None if p.grad is None else full(p.grad) for p in params]


def raise_before_the_first_forward() -> str:
    """What a closure that raises at once, before FSDP2 has seen a forward, raises; then a step."""
    _, optimizer, closure = build("fsdp", 1, torch.float64, "sam")

    def raising() -> Tensor:
        raise KeyError("no such batch")

    try:
        optimizer.step(raising)
    except KeyError as raised:
        optimizer.step(closure)
        return str(raised)
    return ""


def gradients_after_a_raise() -> list[np.ndarray]:
    """Averaged gradients of a plain backward after one that raised half way, without an optimizer of distsam."""
    params = nn.ParameterList(torch.full((2,), float(k)) for k in range(2))
    distsam.shard(params, make_layout(this_world(), Replicate()).mesh, "replicate")

    def raise_late(_: Tensor) -> None:
        assert params[1].grad is not None
        raise IndexError("in backward")

    early = params[0].sum()
    handle = early.register_hook(raise_late)
    try:
        (early + params[1].sum()).backward()
    except IndexError:
        handle.remove()
    for p in params:
        p.grad = None
    ((params[0].sum() + params[1].sum()) * (rank() + 1)).backward()
    return [full(p.grad) for p in params if p.grad is not None]


def shard_container(plan: str) -> str:
    """What is said of a container of a network and a layer, which has no forward of its own."""
    network = distsam.TensorNetwork(distsam.tt((8, 4), 2))
    model = nn.ModuleDict({"network": network, "layer": nn.Linear(4, 4)})
    try:
        distsam.shard(model, make_layout(this_world(), plan_of(plan)).mesh, plan)
    except distsam.InputError as error:
        return str(error)
    return ""
