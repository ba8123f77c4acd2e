"""The engines that test_engines.py runs over: a new one adds a line to ENGINES and inherits every test."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import torch
from methods import BASES, TARGET, Model
from methods import METHODS as OPTIMIZERS
from torch import Tensor, nn

from distsam.engine import Engine, NativeEngine, Schedule
from distsam.optim import Wrapper

# Of the optimizers' contract: each kind of step, and one that keeps tensors of its own.
METHODS = ("plain", "sam", "das", "sam+das", "memory")
NUM_STEPS = 12


@dataclass(frozen=True)
class Runner:
    """An engine, by how it is built, and what it can be asked for.

    Args:
        build: from a model, an optimizer and schedules.
        dtype: of weights.
        methods: of METHODS.
        needs_group: it opens a process group of one rank: its tests run in a process of their own (see conftest.py).
    """

    build: Callable[[nn.Module, Wrapper, Sequence[Schedule]], Engine]
    dtype: torch.dtype = torch.float64
    methods: tuple[str, ...] = METHODS
    needs_group: bool = False


def _deepspeed(stage: int, model: nn.Module, optimizer: Wrapper, schedules: Sequence[Schedule]) -> Engine:
    from distsam.engine.deepspeed.engine import DeepSpeedEngine

    return DeepSpeedEngine(model, optimizer, stage=stage, schedules=schedules)


ENGINES = {"native": Runner(lambda model, optimizer, schedules: NativeEngine(model, optimizer, schedules=schedules))}
if find_spec("deepspeed") is not None:
    for stage in range(4):
        # From stage 1 on an ascent cannot keep tensors of the shapes of parameters.
        methods = METHODS if stage == 0 else tuple(method for method in METHODS if method != "memory")
        ENGINES[f"deepspeed {stage}"] = Runner(partial(_deepspeed, stage), torch.float32, methods, needs_group=True)


def build(
    engine: str, method: str, base: str = "sgd", *, has_schedules: bool = False
) -> tuple[nn.Module, Wrapper, Engine]:
    """A model, its optimizer and its engine, with two schedules if wanted."""
    model, optimizer = build_alone(engine, method, base)
    schedules = []
    if has_schedules:
        schedules = [Schedule(optimizer, "lr", "cosine", NUM_STEPS, warmup_steps=3, final=0.001)]
        for word in {"rho", "alpha"} & set(optimizer.param_groups[0]):
            schedules.append(Schedule(optimizer, word, "linear", NUM_STEPS, final=0.01))
    return model, optimizer, ENGINES[engine].build(model, optimizer, schedules)


def build_alone(engine: str, method: str, base: str = "sgd") -> tuple[nn.Module, Wrapper]:
    """The model and the optimizer without the engine."""
    model = Model().to(ENGINES[engine].dtype)
    return model, OPTIMIZERS[method](BASES[base](model), model)


def losses_of(model: nn.Module, count: int = 1) -> list[Callable[[], Tensor]]:
    """The loss in `count` micro-batches of unequal size, whose mean is the mean over all entries."""
    target = TARGET.to(next(model.parameters()).dtype).flatten()
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


def weights(engine: Engine) -> list[Tensor]:
    return [tensor.clone() for tensor in engine.weights().values()]
