"""What runs on every rank: steps of other ascents, groups of their own rho, and clipped steps."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rank_cases import build, full
from torch import nn

import distsam
from distsam.optim import Plain, TwoPass, Wrapper

sys.path.append(str(Path(__file__).parents[1] / "contract"))
from ascents import Adaptive, EveryWithMemory

LR, MOMENTUM = 0.05, 0.9


def optimizer_over(method: str, model: nn.Module) -> Wrapper:
    base = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)
    networks = distsam.core_networks(model)
    return {
        "base": lambda: Plain(base),
        "sam": lambda: distsam.SAM(base, rho=0.1),
        "das": lambda: distsam.DAS(base, networks, alpha=0.5),
        "asam": lambda: TwoPass(base, Adaptive(rho=0.5)),
        "memory": lambda: TwoPass(base, EveryWithMemory(rho=0.1, every=3)),
    }[method]()


def train(plan: str, method: str, steps: int, clip_norm: float | None = None) -> dict[str, Any]:
    """Parameters after `steps` steps, and the norm of the gradient that the base got last."""
    model, _, closure = build(plan, 1, torch.float64, "base")
    optimizer = optimizer_over(method, model)
    optimizer.clip_norm = clip_norm
    for _ in range(steps):
        optimizer.step(closure)
    squares = sum(float(np.square(full(p.grad)).sum()) for p in model.parameters() if p.grad is not None)
    return {
        "parameters": [full(p) for p in model.parameters()],
        "grad_norm": squares**0.5,
        "counters": optimizer.counters(),
    }


def perturb_groups(plan: str, rhos: tuple[float, float]) -> list[np.ndarray]:
    """How far each parameter moves where the first network and the rest have a rho of their own."""
    model, _, closure = build(plan, 1, torch.float64, "base")
    groups = [
        {"params": list(model.first.parameters()), "rho": rhos[0]},
        {"params": [*model.second.parameters(), model.bias], "rho": rhos[1]},
    ]
    sam = distsam.SAM(torch.optim.SGD(groups, lr=LR))
    closure()
    before = [full(p) for p in model.parameters()]
    with sam.perturbed():
        moved = [full(p) - b for p, b in zip(model.parameters(), before, strict=True)]
    assert all(np.array_equal(full(p), b) for p, b in zip(model.parameters(), before, strict=True))
    return moved
