"""The engines that test_engines.py runs over: a new one adds a line to ENGINES and inherits every test."""

from collections.abc import Callable, Sequence

import torch
from methods import TARGET, Model
from torch import Tensor, nn

import distsam
from distsam.engine import Engine, NativeEngine, Schedule
from distsam.optim import Plain, Wrapper

ENGINES: dict[str, Callable[[nn.Module, Wrapper, Sequence[Schedule]], Engine]] = {
    "native": lambda model, optimizer, schedules: NativeEngine(model, optimizer, schedules=schedules),
}
METHODS: dict[str, Callable[[torch.optim.Optimizer, nn.Module], Wrapper]] = {
    "base": lambda base, model: Plain(base),
    "sam": lambda base, model: distsam.SAM(base, rho=0.1),
    "das": lambda base, model: distsam.DAS(base, distsam.core_networks(model), alpha=0.1),
    "sam+das": lambda base, model: distsam.SAM(distsam.DAS(base, distsam.core_networks(model), alpha=0.1), rho=0.1),
}
BASES: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
    "adamw": lambda model: torch.optim.AdamW(model.parameters(), lr=0.01),
}
NUM_STEPS = 12


def build(
    engine: str, method: str, base: str = "sgd", *, has_schedules: bool = False
) -> tuple[nn.Module, Wrapper, Engine]:
    """A model in float64, its optimizer and its engine, with two schedules if wanted."""
    model = Model().double()
    bottom = BASES[base](model)
    bottom.param_groups[0].setdefault("rho", 0.1)
    optimizer = METHODS[method](bottom, model)
    schedules = []
    if has_schedules:
        schedules = [
            Schedule(optimizer, "lr", "cosine", NUM_STEPS, warmup_steps=3, final=0.001),
            Schedule(optimizer, "rho", "linear", NUM_STEPS, final=0.01),
        ]
    return model, optimizer, ENGINES[engine](model, optimizer, schedules)


def losses_of(model: nn.Module, count: int = 1) -> list[Callable[[], Tensor]]:
    """The loss in `count` micro-batches of unequal size, whose mean is the mean over all entries."""
    target = TARGET.double().flatten()
    pieces = target.tensor_split(count) if count < 3 else target.split([7, 23, *[30 // (count - 2)] * (count - 2)])
    starts = [0]
    for piece in pieces:
        starts.append(starts[-1] + len(piece))

    def loss_of(k: int) -> Callable[[], Tensor]:
        def loss() -> Tensor:
            error = model().flatten()[starts[k] : starts[k + 1]] - pieces[k]
            return error.square().sum() * count / len(target)

        return loss

    return [loss_of(k) for k in range(len(pieces))]
