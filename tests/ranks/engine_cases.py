"""What runs on every rank to look at an engine's step: micro-batches, reductions, and ranks that see the same data."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from collective_count import CollectiveCount
from rank_cases import NUM_ENTRIES, build, entries, full, slice_of
from torch import Tensor, nn

from distsam.engine import NativeEngine, Schedule
from distsam.sharding.collectives import rank, world_size

REDUCTIONS = ("allreduce_", "reduce_scatter_", "_reduce_scatter_base_", "reduce_scatter_tensor", "all_reduce")


def losses_of(model: nn.Module, dtype: torch.dtype, count: int) -> list[Callable[[], Tensor]]:
    """This rank's slice in `count` micro-batches; their mean, over ranks too, is that over all entries."""
    indices, values = entries(dtype)
    mine = slice_of(NUM_ENTRIES)
    device = next(model.parameters()).device
    pieces = list(zip(indices[mine].tensor_split(count), values[mine].tensor_split(count), strict=True))

    def loss_of(where: Tensor, target: Tensor) -> Callable[[], Tensor]:
        def loss() -> Tensor:
            error = model(where.to(device)) - target.to(device)
            return error.square().sum() * (count * world_size() / NUM_ENTRIES)

        return loss

    return [loss_of(*piece) for piece in pieces]


def train_in_pieces(
    plan: str, method: str, count: int, steps: int = 20, clip_norm: float | None = None
) -> list[np.ndarray]:
    """Parameters after steps of `count` micro-batches each."""
    model, optimizer, _ = build(plan, 1, torch.float64, method)
    engine = NativeEngine(model, optimizer, clip_norm=clip_norm)
    for _ in range(steps):
        engine.step(losses_of(model, torch.float64, count))
    return [full(p) for p in model.parameters()]


def count_collectives(plan: str, method: str, count: int) -> dict[str, int]:
    """How many collectives of each name one step of `count` micro-batches issues."""
    model, optimizer, _ = build(plan, 1, torch.float32, method)
    engine = NativeEngine(model, optimizer)
    engine.step(losses_of(model, torch.float32, count))
    with CollectiveCount() as calls:
        engine.step(losses_of(model, torch.float32, count))
    return dict(calls.calls)


def take_a_step_with_an_infinite_loss(plan: str, method: str) -> tuple[bool, list[bool], dict[str, int]]:
    """Are the weights as before a step in which one rank's loss is infinite and its gradient is not; what was asked to
    stop after each of two more steps, the second of which one rank asks to be the last; and what was counted.
    """
    model, optimizer, _ = build(plan, 1, torch.float64, method)
    engine = NativeEngine(model, optimizer)
    [loss] = losses_of(model, torch.float64, 1)
    before = [full(p) for p in model.parameters()]
    infinite = float("inf") if rank() == 1 else 0.0
    engine.step([lambda: loss() + infinite])
    is_kept = all(np.array_equal(a, full(p)) for a, p in zip(before, model.parameters(), strict=True))
    engine.step([loss])
    stops = [engine.stop_requested]
    if rank() == 1:
        engine.request_stop()
    engine.step([loss])
    return is_kept, [*stops, engine.stop_requested], engine.counters()


def fail_in_the_second_micro_batch(plan: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Weights after a step whose second micro-batch raised and one that went well; and after the latter alone."""
    answers = []
    for is_failing in (True, False):
        model, optimizer, _ = build(plan, 1, torch.float64, "sam")
        engine = NativeEngine(model, optimizer)
        losses = losses_of(model, torch.float64, 2)
        if is_failing:
            with suppress(KeyError):
                engine.step([losses[0], _broken])
        engine.step(losses)
        answers.append([full(p) for p in model.parameters()])
    return answers[0], answers[1]


def _broken() -> Tensor:
    raise KeyError("no such batch")


def resume_with_schedule(plan: str) -> bool:
    """True if a run that loads another's state at step 5 of 10 ends with the same bits on this rank."""

    def start() -> tuple[nn.Module, NativeEngine]:
        model, optimizer, _ = build(plan, 1, torch.float64, "sam+das")
        schedule = Schedule(optimizer, "lr", "cosine", 10, warmup_steps=2, final=0.001)
        return model, NativeEngine(model, optimizer, schedules=[schedule])

    model, engine = start()
    for _ in range(5):
        engine.step(losses_of(model, torch.float64, 2))
    state = engine.state()
    kept: dict[str, Any] = {name: t.detach().clone() for name, t in engine.state_tensors().items()}
    weights = [p.detach().clone() for p in model.parameters()]
    other, resumed = start()
    with torch.no_grad():
        for param, value in zip(other.parameters(), weights, strict=True):
            param.copy_(value)
    resumed.load_state(state)
    for name, tensor in resumed.allocate_state({n: (t.shape, t.dtype) for n, t in kept.items()}).items():
        tensor.copy_(kept[name])
    for _ in range(5):
        engine.step(losses_of(model, torch.float64, 2))
        resumed.step(losses_of(other, torch.float64, 2))
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    return all(np.array_equal(full(a), full(b)) for a, b in pairs)
