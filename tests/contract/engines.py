"""The engines that test_engines.py runs over: a new one adds a line to ENGINES and inherits every test."""

from collections.abc import Callable, Sequence

from methods import BASES, TARGET, Model
from methods import METHODS as OPTIMIZERS
from torch import Tensor, nn

from distsam.engine import Engine, NativeEngine, Schedule
from distsam.optim import Wrapper

ENGINES: dict[str, Callable[[nn.Module, Wrapper, Sequence[Schedule]], Engine]] = {
    "native": lambda model, optimizer, schedules: NativeEngine(model, optimizer, schedules=schedules),
}
# Of the optimizers' contract: each kind of step, and one that keeps tensors of its own.
METHODS = ("plain", "sam", "das", "sam+das", "memory")
NUM_STEPS = 12


def build(
    engine: str, method: str, base: str = "sgd", *, has_schedules: bool = False
) -> tuple[nn.Module, Wrapper, Engine]:
    """A model in float64, its optimizer and its engine, with two schedules if wanted."""
    model = Model().double()
    bottom = BASES[base](model)
    optimizer = OPTIMIZERS[method](bottom, model)
    schedules = []
    if has_schedules:
        schedules = [Schedule(optimizer, "lr", "cosine", NUM_STEPS, warmup_steps=3, final=0.001)]
        for word in {"rho", "alpha"} & set(optimizer.param_groups[0]):
            schedules.append(Schedule(optimizer, word, "linear", NUM_STEPS, final=0.01))
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
