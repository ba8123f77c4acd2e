"""What runs on every rank under DeepSpeed: networks, linear layers and a frozen parameter, five steps."""

import json
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest import mock

import numpy as np
import torch
from deepspeed_mistakes import MISTAKES
from rank_cases import chain, full, plan_of, this_world
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

import distsam
from distsam.engine import Engine, NativeEngine
from distsam.optim import Wrapper
from distsam.sharding import make_layout
from distsam.sharding.collectives import is_distributed, rank, world_size

SHAPE, NUM_ENTRIES, NUM_STEPS = (4, 3, 5), 24, 5
CUT = "3 cut"


class Mixed(nn.Module):
    """Two networks between linear layers; 1 + 7 elements in the last layer, which no number of ranks divides."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = distsam.TensorNetwork(distsam.tt(SHAPE, 3), norms=(1, 2, 3), generator=generator)
        self.second = distsam.TensorNetwork(distsam.tucker(SHAPE, (2, 2, 2)), generator=generator)
        torch.manual_seed(0)
        self.inner, self.outer = nn.Linear(3, 7), nn.Linear(7, 1)
        self.frozen = nn.Parameter(torch.tensor([1.5]), requires_grad=False)

    def forward(self, indices: Tensor) -> Tensor:
        value = self.first(indices) + self.second(indices)
        hidden = torch.tanh(self.inner(torch.stack([value, value.sin(), self.second(indices)], 1)))
        return (self.outer(hidden)[:, 0] + value) * self.frozen


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.stack([torch.randint(n, (NUM_ENTRIES,), generator=generator) for n in SHAPE], 1),
            torch.randn(NUM_ENTRIES, generator=generator),
        )
        for _ in range(NUM_STEPS)
    ]


def losses_of(model: nn.Module, batch: tuple[Tensor, Tensor], count: int) -> list[Callable[[], Tensor]]:
    """This rank's part of each of `count` micro-batches."""

    def loss_of(micro: slice) -> Callable[[], Tensor]:
        return lambda: (model(batch[0][micro]) - batch[1][micro]).square().mean()

    each = NUM_ENTRIES // (count * world_size())
    starts = [(k * world_size() + rank()) * each for k in range(count)]
    return [loss_of(slice(start, start + each)) for start in starts]


def build(
    stage: int | str | None,
    method: str,
    base: str,
    settings: dict[str, Any] | None = None,
    clip_norm: float | None = None,
    is_bf16: bool = False,
) -> tuple[nn.Module, Wrapper, Engine]:
    """The model, its optimizer, and DeepSpeed's engine; the native one without a stage.

    Args:
        stage: "3 cut" is 3, with no parameter kept whole between passes.
    """
    model, more = Mixed(), {"clip_norm": clip_norm, "autocast": torch.bfloat16 if is_bf16 else None}
    if stage is None and is_distributed():
        distsam.shard(model, make_layout(this_world(), plan_of("replicate")).mesh, "replicate")
    optimizer = chain(method, model, 0.05)
    if base == "adamw":
        _replace_base(optimizer, torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=1e-2))
    if stage is None:
        return model, optimizer, NativeEngine(model, optimizer, **more)
    from distsam.engine.deepspeed.engine import DeepSpeedEngine

    if stage == CUT:
        stage, settings = 3, {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
    return model, optimizer, DeepSpeedEngine(model, optimizer, stage=stage, settings=settings, **more)


def _replace_base(optimizer: Wrapper, base: torch.optim.Optimizer) -> None:
    for group, old in zip(base.param_groups, optimizer.param_groups, strict=True):
        group.update({key: value for key, value in old.items() if key in ("rho", "alpha")})
    optimizer.chain()[-1].base = base


def five_steps(
    stage: int | str | None,
    method: str = "sam",
    base: str = "sgd",
    count: int = 1,
    clip_norm: float | None = None,
    wrong: str | None = None,
    settings: dict[str, Any] | None = None,
    is_bf16: bool = False,
) -> dict[str, Any]:
    """Parameters after five steps, whether SAM's weights came back bit for bit, the numbers of the last step.

    Args:
        wrong: a mistake to make, by its name in `MISTAKES`.
        settings: DeepSpeed's.
        is_bf16: run the passes in bfloat16.
    """
    model, optimizer, engine = build(stage, method, base, settings, clip_norm, is_bf16)
    coordinator = distsam.BalanceCoordinator(model, optimizer)
    with ExitStack() as stack:
        if wrong is not None:
            MISTAKES[wrong](stack, engine)
        for batch in batches():
            engine.step(losses_of(model, batch, count))
    return {
        "parameters": whole(engine),
        "snapshot": coordinator.snapshot(),
        "is_alone": not is_distributed(),
    }


def weights_come_back(stage: int | str) -> bool:
    """Does the base, at the end of a SAM step, start from the very bits from which the step started?"""
    model, optimizer, engine = build(stage, "sam", "sgd")
    before = whole(engine)
    is_same: list[bool] = []

    step = optimizer.base_optimizer.step

    def look_and_step() -> None:
        is_same.append(same(before, whole(engine)))
        step()

    with mock.patch.object(optimizer.base_optimizer, "step", look_and_step):
        engine.step(losses_of(model, batches()[0], 1))
    return is_same == [True]


def skip_together(stage: int | str) -> dict[str, Any]:
    """A step in which the last rank's loss is no number, between two good ones."""
    model, optimizer, engine = build(stage, "sam", "adamw")
    first, second, third = batches()[:3]
    engine.step(losses_of(model, first, 1))
    before = whole(engine)
    factor = float("nan") if rank() == world_size() - 1 else 1.0
    engine.step([lambda: losses_of(model, second, 1)[0]() * factor])
    is_untouched = same(before, whole(engine))
    engine.step(losses_of(model, third, 1))
    return {
        "is_untouched": is_untouched,
        "num_skipped": optimizer.num_skipped,
        "parameters": whole(engine),
    }


def without_the_second_batch() -> list[np.ndarray]:
    """The parameters after the first and third step alone, natively."""
    model, _, engine = build(None, "sam", "adamw")
    for batch in (batches()[0], batches()[2]):
        engine.step(losses_of(model, batch, 1))
    return whole(engine)


def a_pass_that_raises(stage: int | str) -> dict[str, Any]:
    """A micro-batch that raises on every rank, then a good step."""
    model, _, engine = build(stage, "sam", "sgd")
    before = whole(engine)

    def broken() -> Tensor:
        raise KeyError("no such batch")

    raised = False
    try:
        engine.step([losses_of(model, batches()[0], 2)[0], broken])
    except KeyError:
        raised = True
    is_untouched = same(before, whole(engine))
    for batch in batches():
        engine.step(losses_of(model, batch, 1))
    return {"raised": raised, "is_untouched": is_untouched, "parameters": whole(engine)}


class Raising(torch.autograd.Function):
    """The identity, whose backward raises."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 1

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        raise KeyError("no such layer")


def a_pass_that_raises_half_way(stage: int | str, where: str, sweep: int) -> dict[str, Any]:
    """An error on every rank after some layers of a forward or backward, in one of two passes, then good steps."""
    model, _, engine = build(stage, "sam", "adamw")
    calls = 0

    def raising(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls != 1 + sweep:
            return output
        if where == "forward":
            raise KeyError("no such layer")
        return Raising.apply(output)  # type: ignore[no-any-return, no-untyped-call]

    handle = model.inner.register_forward_hook(raising)
    before, raised = whole(engine), ""
    try:
        engine.step(losses_of(model, batches()[0], 1))
    except KeyError as error:
        raised = str(error)
    handle.remove()
    is_untouched = same(before, whole(engine))
    for batch in batches():
        engine.step(losses_of(model, batch, 1))
    return {"raised": raised, "is_untouched": is_untouched, "parameters": whole(engine)}


class Grouped(Mixed):
    """Two linear layers that a loss may choose between, a buffer, and parameters that no loss reaches."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.left, self.right = nn.Linear(1, 1), nn.Linear(1, 1)
        self.norm = nn.BatchNorm1d(1, momentum=None, affine=True)
        self.is_left = True

    def forward(self, indices: Tensor) -> Tensor:
        value = super().forward(indices)
        layer = self.left if self.is_left else self.right
        return layer(value.unsqueeze(1))[:, 0]


def build_grouped(stage: int | str | None) -> tuple[Grouped, Wrapper, Engine]:
    """SAM on a group that is frozen throughout and two with rates of their own."""
    model = Grouped()
    for param in model.outer.parameters():
        param.requires_grad_(False)
    ours, rest = list(model.first.parameters()), [*model.second.parameters(), *model.inner.parameters()]
    more = [*model.left.parameters(), *model.right.parameters(), model.frozen]
    groups = [
        {"params": list(model.outer.parameters())},
        {"params": ours, "lr": 0.02},
        {"params": [*rest, *more, *model.norm.parameters()], "lr": 0.05},
    ]
    optimizer = distsam.SAM(torch.optim.SGD(groups, lr=0.1, momentum=0.9), rho=0.05)
    if stage is None:
        return model, optimizer, NativeEngine(model, optimizer)
    from distsam.engine.deepspeed.engine import DeepSpeedEngine

    settings = {"zero_optimization": {"stage3_param_persistence_threshold": 0}} if stage == CUT else None
    return model, optimizer, DeepSpeedEngine(model, optimizer, stage=3 if stage == CUT else stage, settings=settings)


def five_grouped_steps(stage: int | str | None) -> list[np.ndarray]:
    """Parameters and buffers after five steps with changed rates."""
    model, optimizer, engine = build_grouped(stage)
    for number, batch in enumerate(batches()):
        optimizer.param_groups[1]["lr"] = 0.02 / (1 + number)
        engine.step(losses_of(model, batch, 1))
    return whole(engine)


def through_other_layers(stage: int) -> tuple[str, bool]:
    """What is said where ranks' losses run through other layers of the same size, and whether the weights stayed."""
    model, _, engine = build_grouped(stage)
    before = whole(engine)
    model.is_left = rank() == 0
    try:
        engine.step(losses_of(model, batches()[0], 1))
    except distsam.InputError as error:
        return str(error), same(before, whole(engine))
    return "nothing", False


def refused_weight(kind: str) -> str:
    """What is said of a model with such a weight."""
    from distsam.engine.deepspeed.engine import DeepSpeedEngine

    model = Mixed()
    model.odd = nn.Parameter(
        {"scalar": torch.tensor(1.0), "empty": torch.ones(0), "double": torch.ones(2).double()}[kind]
    )
    optimizer = distsam.SAM(torch.optim.SGD(model.parameters(), lr=0.1))
    try:
        DeepSpeedEngine(model, optimizer, stage=2)
    except distsam.InputError as error:
        return str(error)
    return "nothing"


def penalty_on_weights(stage: int) -> str:
    """What is said of a loss that reads weights outside the model's forward."""
    model, _, engine = build(stage, "sam", "sgd")
    loss = losses_of(model, batches()[0], 1)[0]
    try:
        engine.step([lambda: loss() + sum(p.square().sum() for p in model.parameters())])
    except distsam.InputError as error:
        return str(error)
    return "nothing"


def goes_on_bit_for_bit(stage: int | str, method: str) -> bool:
    """Are five steps those of two, a state through JSON and full tensors, and three more by a new engine?"""
    model, _, engine = build(stage, method, "adamw")
    for batch in batches()[:2]:
        engine.step(losses_of(model, batch, 1))
    state = json.loads(json.dumps(engine.state()))
    tensors = {name: full(tensor) for name, tensor in engine.state_tensors().items()}
    start = {name: full(tensor) for name, tensor in engine.weights().items()}
    for batch in batches()[2:]:
        engine.step(losses_of(model, batch, 1))

    other, _, resumed = build(stage, method, "adamw")
    weights = resumed.weights()
    for name, tensor in weights.items():
        fill(tensor, torch.from_numpy(start[name]))
    resumed.put_weights(weights)
    resumed.load_state(state)
    room = resumed.allocate_state({name: (torch.Size(t.shape), torch.float32) for name, t in tensors.items()})
    assert room.keys() == tensors.keys()
    for name, tensor in room.items():
        fill(tensor, torch.from_numpy(tensors[name]))
    assert resumed.num_steps == 2
    for batch in batches()[2:]:
        resumed.step(losses_of(other, batch, 1))
    left, right = engine.state_tensors(), resumed.state_tensors()
    return same(whole(engine), whole(resumed)) and all(
        np.array_equal(full(left[name]), full(right[name])) for name in tensors
    )


def whole(engine: Engine) -> list[np.ndarray]:
    """The weights, of full shape; what a pass would gather of them stays as it is."""
    return [full(tensor) for tensor in engine.weights().values()]


def same(left: list[np.ndarray], right: list[np.ndarray]) -> bool:
    """Bit for bit."""
    return all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


def fill(room: Tensor, whole: Tensor) -> None:
    """What loading a checkpoint does."""
    if isinstance(room, DTensor):
        parts = whole.chunk(world_size())
        room.to_local().copy_(parts[rank()] if rank() < len(parts) else whole[:0])
    else:
        room.copy_(whole)


def stops_after(stage: int | str) -> list[bool]:
    """Whether each of three steps ends with a stop, when the last rank asks before the second."""
    model, _, engine = build(stage, "sam", "sgd")
    seen = []
    for step, batch in enumerate(batches()[:3]):
        if step == 1 and rank() == world_size() - 1:
            engine.request_stop()
        engine.step(losses_of(model, batch, 1))
        seen.append(engine.stop_requested)
    return seen


def bytes_held(stage: int | str) -> int:
    """Bytes of optimizer state on this rank after a step of AdamW."""
    model, optimizer, engine = build(stage, "base", "adamw")
    engine.step(losses_of(model, batches()[0], 1))
    tensors = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor) and t.dim()]
    return sum(t.numel() * t.element_size() for t in tensors)


def refused(settings: dict[str, Any]) -> str:
    """What is said of these settings."""
    try:
        build(2, "sam", "sgd", settings)
    except distsam.InputError as error:
        return str(error)
    return "nothing"
