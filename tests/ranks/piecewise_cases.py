"""What runs on every rank to look at steps of torch's optimizers on pieces."""

import copy
from contextlib import suppress
from typing import Any

import torch
from rank_cases import build, entries
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from distsam.optim import piecewise
from distsam.optim.piecewise import step_base
from distsam.sharding import local_tensor

OPTIONS: dict[str, dict[str, Any]] = {
    "SGD": {"momentum": 0.9, "weight_decay": 0.1},
    "Adam": {"amsgrad": True},
    "AdamW": {"foreach": True},  # an accelerator's default: refuses plain tensors beside DTensors
}


def compare_with_steps_on_dtensors(name: str) -> tuple[bool, bool, bool]:
    """After four steps, the second half with a state that was loaded: weights alike, state alike, all bits; and is the
    state placed like its parameter?"""
    (ours, step_ours), (theirs, step_theirs) = (_trained(name, on_pieces) for on_pieces in (True, False))
    for both in (step_ours, step_theirs):
        both(2)
    saved = copy.deepcopy(ours.state_dict())
    ours.load_state_dict(saved)
    for both in (step_ours, step_theirs):
        both(2)
    params = [[p for group in o.param_groups for p in group["params"]] for o in (ours, theirs)]
    has_weights = all(_are_equal(p, q) for p, q in zip(*params, strict=True))
    state = [[o.state[p] for p in own] for o, own in zip((ours, theirs), params, strict=True)]
    has_state = all(
        a.keys() == b.keys() and all(_are_equal(a[key], b[key]) for key in a) for a, b in zip(*state, strict=True)
    )
    is_placed = all(
        not isinstance(v, Tensor) or v.dim() == 0 or not isinstance(p, DTensor) or v.placements == p.placements
        for p, values in zip(params[0], state[0], strict=True)
        for v in values.values()
    )
    return has_weights, has_state, is_placed


def step_that_raises() -> tuple[int, int]:
    """How many parameters have state after a first step that ends in an exception, and how many there are."""
    model, _, _ = build("fsdp", 1, torch.float64, "base")
    base = Raising(model.parameters(), lr=0.01)
    indices, values = entries(torch.float64)
    (model(indices) - values).square().mean().backward()
    piecewise.ELEMENTWISE, kept = frozenset([Raising]), piecewise.ELEMENTWISE
    try:
        with suppress(InterruptedError):
            step_base(base)
    finally:
        piecewise.ELEMENTWISE = kept
    params = list(model.parameters())
    return sum(bool(base.state[p]) for p in params), len(params)


class Raising(torch.optim.Adam):
    """Raises once all is done."""

    def step(self, closure: Any = None) -> Any:
        super().step(closure)
        raise InterruptedError


def step_with_a_global_hook() -> list[bool]:
    """As `step_with_a_hook`, of a hook on all optimizers of the process."""
    _, optimizer, closure = build("fsdp", 1, torch.float64, "base")
    found: list[bool] = []
    hook = register_optimizer_step_post_hook(
        lambda base, *_: found.append(any(isinstance(p, DTensor) for p in base.param_groups[0]["params"]))
    )
    optimizer.step(closure)
    hook.remove()
    return found


def step_with_a_hook() -> list[bool]:
    """Is any parameter that a hook of the user's finds in the optimizer a DTensor?"""
    _, optimizer, closure = build("fsdp", 1, torch.float64, "base")
    found: list[bool] = []
    optimizer.register_step_pre_hook(
        lambda base, *_: found.append(any(isinstance(p, DTensor) for p in base.param_groups[0]["params"]))
    )
    optimizer.step(closure)
    return found


def _trained(name: str, on_pieces: bool) -> tuple[torch.optim.Optimizer, Any]:
    model, _, _ = build("fsdp", 1, torch.float32, "base")
    options = {k: v for k, v in OPTIONS.get(name, {}).items() if on_pieces or k != "foreach"}
    base = getattr(torch.optim, name)(model.parameters(), lr=0.01, **options)
    indices, values = entries(torch.float32)

    def steps(count: int) -> None:
        for _ in range(count):
            base.zero_grad()
            (model(indices) - values).square().mean().backward()
            step_base(base) if on_pieces else base.step()

    return base, steps


def _are_equal(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor):
        return isinstance(left, DTensor) == isinstance(right, DTensor) and torch.equal(
            local_tensor(left), local_tensor(right)
        )
    return bool(left == right)
