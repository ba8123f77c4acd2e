"""The values of a schedule are torch's own, those of a resumed one the same bits, and each group has its own."""

import pytest
import torch
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

import distsam
from distsam.engine import SHAPES, Schedule
from distsam.errors import ArgumentError


def optimizer_of(*values: float, key: str = "lr") -> Optimizer:
    groups = [{"params": [nn.Parameter(torch.zeros(2))], key: value} for value in values]
    return SGD(groups, lr=0.1)


def values_of(schedule: Schedule, optimizer: Optimizer, count: int) -> list[list[float]]:
    values = []
    for _ in range(count):
        values.append([group[schedule.key] for group in optimizer.param_groups])
        schedule.step()
    return values


@pytest.mark.parametrize("warmup", [0, 4])
@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_a_schedule_has_the_values_of_torch(shape: str, warmup: int) -> None:
    optimizer, reference = optimizer_of(0.2), optimizer_of(0.2)
    got = [v for (v,) in values_of(Schedule(optimizer, "lr", shape, 20, warmup, final=0.05), optimizer, 20)]
    after = (
        CosineAnnealingLR(reference, 20 - warmup, eta_min=0.05)
        if shape == "cosine"
        else LinearLR(reference, 1.0, 0.05 / 0.2, 20 - warmup)
    )
    theirs: SequentialLR | CosineAnnealingLR | LinearLR = after
    if warmup:
        # Its first value is a quarter, its last the whole, after warmup - 1 steps.
        warm = LinearLR(reference, 1 / warmup, 1.0, warmup - 1)
        theirs = SequentialLR(reference, [warm, after], [warmup])
    expected = []
    for _ in range(20):
        expected.append(reference.param_groups[0]["lr"])
        reference.step()
        theirs.step()
    assert got == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_end_value_is_reached_exactly_and_kept(shape: str) -> None:
    optimizer = optimizer_of(0.3)
    values = values_of(Schedule(optimizer, "lr", shape, 7, final=0.1), optimizer, 30)
    assert {v for (v,) in values[7:]} == {0.3 if shape == "constant" else 0.1}


def test_a_constant_schedule_only_warms_up() -> None:
    optimizer = optimizer_of(0.4)
    values = values_of(Schedule(optimizer, "lr", "constant", 10, 4), optimizer, 6)
    assert values == [[0.1], [0.2], [pytest.approx(0.3)], [0.4], [0.4], [0.4]]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("done", [0, 2, 9])
def test_a_resumed_schedule_gives_the_same_bits(shape: str, done: int) -> None:
    whole, part, resumed = optimizer_of(0.2, 0.5), optimizer_of(0.2, 0.5), optimizer_of(0.2, 0.5)
    expected = values_of(Schedule(whole, "lr", shape, 12, 3, 0.01), whole, 15)
    first = Schedule(part, "lr", shape, 12, 3, 0.01)
    before = values_of(first, part, done)
    second = Schedule(resumed, "lr", shape, 12, 3, 0.01)
    second.load_state(first.state())
    assert before + values_of(second, resumed, 15 - done) == expected


def test_each_group_has_its_own_start_and_rho_is_one_of_the_keys() -> None:
    model = distsam.TensorNetwork(distsam.cp((4, 5), 2))
    groups = [{"params": [p], "rho": rho} for p, rho in zip(model.cores, (0.1, 0.0), strict=True)]
    optimizer = SGD(groups, lr=0.1)
    values = values_of(Schedule(optimizer, "rho", "linear", 4, final=0.0), optimizer, 5)
    assert [v for v, _ in values] == pytest.approx([0.1, 0.075, 0.05, 0.025, 0.0])
    assert [v for _, v in values] == [0.0] * 5
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.1]


def test_a_tensor_learning_rate_is_set_in_place() -> None:
    rate = torch.tensor(0.4, dtype=torch.float64)
    optimizer = SGD([nn.Parameter(torch.zeros(2))], lr=rate)
    Schedule(optimizer, "lr", "linear", 4).step()
    assert optimizer.param_groups[0]["lr"] is rate
    assert float(rate) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("lr", "square", 10), "shape: square: unknown; use one of constant, linear, cosine"),
        (("rho", "linear", 10), "key: rho"),
        (("lr", "linear", 0), "num_steps: 0"),
        (("lr", "linear", 10, 11), "warmup_steps: 11: use 0 to 10"),
        (("lr", "linear", 10, -1), "warmup_steps: -1"),
        (("lr", "linear", 10, 0, -0.1), "final: -0.1"),
        (("lr", "linear", 10, 0, float("nan")), "final: nan"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Schedule(optimizer_of(0.1), *arguments)  # type: ignore[arg-type]
