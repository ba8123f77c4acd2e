"""What is particular to the native engine: autocast, state of groups, refusals. The rest is in tests/contract."""

import json

import pytest
import torch
from torch import Tensor, nn

import distsam
from distsam.engine import NativeEngine, Schedule
from distsam.errors import ArgumentError, TrainingDiverged
from distsam.optim import Plain, Wrapper

# Large enough that some cores are merged and others gathered as they are.
SHAPE = (30, 77, 18)
SPECS = {
    "cp": distsam.cp(SHAPE, 4),
    "tucker": distsam.tucker(SHAPE, (8, 6, 8)),
    "tt": distsam.tt(SHAPE, 3),
    "tr": distsam.tr(SHAPE, 3),
}


def network_of(name: str) -> distsam.TensorNetwork:
    return distsam.TensorNetwork(SPECS[name], generator=torch.Generator().manual_seed(0), dtype=torch.float32)


def indices_of(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.stack([torch.randint(n, (count,), generator=generator) for n in SHAPE], 1)


@pytest.mark.parametrize("method", ["at", "dense"])
@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("count", [7, 5000])
def test_bf16_autocast_runs_both_passes_and_keeps_the_weights_in_float32(name: str, method: str, count: int) -> None:
    """Backward met a bf16 table beside a float32 one, and scatter_add_ refused them."""
    model = network_of(name)
    optimizer = distsam.SAM(torch.optim.Adam(model.parameters(), lr=0.01), rho=0.05)
    engine = NativeEngine(model, optimizer, autocast=torch.bfloat16)
    indices = indices_of(count)
    seen: list[bool] = []

    def loss() -> Tensor:
        seen.append(torch.is_autocast_enabled("cpu"))
        values = model.at(indices) if method == "at" else model.dense()
        return (values.float() - 1).square().mean()

    exact = loss()
    first = float(engine.step([loss]))
    assert first == pytest.approx(float(exact.detach()), rel=0.05)
    for _ in range(30):
        last = float(engine.step([loss]))
    assert last < 0.9 * first
    assert seen == [False] + [True] * 62
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}


@pytest.mark.parametrize("name", SPECS)
def test_the_gradient_under_autocast_is_near_the_exact_one(name: str) -> None:
    exact, lower = network_of(name), network_of(name)
    indices = indices_of(500)
    exact.at(indices).square().mean().backward()
    with torch.autocast("cpu", torch.bfloat16):
        values = lower.at(indices)
        loss = values.square().mean()
    loss.backward()
    for a, b in zip(exact.cores, lower.cores, strict=True):
        assert float((a.grad - b.grad).norm() / a.grad.norm()) < 0.03


def build(lr: float = 0.1, momentum: float = 0.9) -> tuple[nn.Module, Wrapper]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    return model, Plain(torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum))


def test_a_group_value_is_restored_unless_the_user_gives_another() -> None:
    _, optimizer = pair = build()
    engine = NativeEngine(*pair)
    optimizer.param_groups[0].update(lr=0.01, momentum=0.5)
    state = json.loads(json.dumps(engine.state()))
    _, other = pair = build(momentum=0.8)
    NativeEngine(*pair).load_state(state)
    assert (other.param_groups[0]["lr"], other.param_groups[0]["momentum"]) == (0.01, 0.8)


def test_tuples_and_tensors_of_a_group_keep_their_kind() -> None:
    def adam() -> NativeEngine:
        model = nn.Linear(3, 2)
        rate = torch.tensor(0.1)
        return NativeEngine(model, Plain(torch.optim.Adam(model.parameters(), lr=rate, betas=(0.8, 0.9))))

    first, second = adam(), adam()
    first.optimizer.param_groups[0]["betas"] = (0.5, 0.6)
    first.optimizer.param_groups[0]["lr"].fill_(0.25)
    second.load_state(json.loads(json.dumps(first.state())))
    group = second.optimizer.param_groups[0]
    assert group["betas"] == (0.5, 0.6)
    assert isinstance(group["lr"], Tensor)
    assert float(group["lr"]) == 0.25


def test_a_resumed_schedule_follows_the_start_that_is_given_now() -> None:
    first, second = build(lr=0.1), build(lr=0.2)
    engine = NativeEngine(*first, schedules=[Schedule(first[1], "lr", "linear", 10)])
    for _ in range(5):
        engine.step([lambda: first[0].weight.square().sum()])
    resumed = NativeEngine(*second, schedules=[Schedule(second[1], "lr", "linear", 10)])
    resumed.load_state(engine.state())
    assert first[1].param_groups[0]["lr"] == pytest.approx(0.05)
    assert second[1].param_groups[0]["lr"] == pytest.approx(0.1)


def test_a_schedule_that_is_new_starts_where_the_run_stands() -> None:
    first, second = build(), build()
    engine = NativeEngine(*first)
    for _ in range(5):
        engine.step([lambda: first[0].weight.square().sum()])
    resumed = NativeEngine(*second, schedules=[Schedule(second[1], "lr", "linear", 10)])
    resumed.load_state(engine.state())
    assert second[1].param_groups[0]["lr"] == pytest.approx(0.05)


def test_schedules_keep_step_with_a_run_that_diverges() -> None:
    """What raised was counted, the schedules were not moved: the run went on a step behind for good."""
    model = nn.Linear(3, 2)
    optimizer = Plain(torch.optim.SGD(model.parameters(), lr=0.1), max_skipped=2)
    engine = NativeEngine(model, optimizer, schedules=[Schedule(optimizer, "lr", "linear", 10)])

    def loss() -> Tensor:
        return model(torch.full((4, 3), float("nan"))).sum()

    engine.step([loss])
    with pytest.raises(TrainingDiverged):
        engine.step([loss])
    state = engine.state()
    assert state["counters"]["num_steps"] == state["schedules"]["lr"]["step"] == 2


def test_schedules_keep_step_where_the_base_comes_to_a_number_that_float32_cannot_hold() -> None:
    """Of such a step nothing is counted; it ended in torch's "cannot be converted to type float without overflow"."""
    model = nn.Linear(3, 2)
    optimizer = Plain(torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=1e308))
    engine = NativeEngine(model, optimizer, schedules=[Schedule(optimizer, "lr", "linear", 10)])
    with pytest.raises(TrainingDiverged, match="lower its learning rate or weight decay"):
        engine.step([lambda: model(torch.ones(4, 3)).sum()])
    state = engine.state()
    assert state["counters"]["num_steps"] == state["schedules"]["lr"]["step"] == 0


def test_a_state_of_other_groups_is_refused() -> None:
    model, optimizer = build()
    state = NativeEngine(model, optimizer).state()
    other = Plain(torch.optim.SGD([{"params": [p]} for p in model.parameters()], lr=0.1))
    with pytest.raises(ArgumentError, match="state: of 1 parameter groups; the optimizer has 2"):
        NativeEngine(model, other).load_state(state)


def test_clip_norm_is_handed_to_the_optimizer() -> None:
    model, optimizer = build()
    NativeEngine(model, optimizer, clip_norm=0.5)
    assert optimizer.clip_norm == 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"autocast": torch.float32}, "autocast: torch.float32"),
        ({"clip_norm": 0.0}, "clip_norm: 0.0"),
        ({"clip_norm": -1.0}, "clip_norm: -1.0"),
        ({"clip_norm": float("inf")}, "clip_norm: inf"),
    ],
)
def test_what_an_engine_cannot_do_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        NativeEngine(*build(), **arguments)  # type: ignore[arg-type]


def test_two_schedules_of_one_key_are_refused() -> None:
    model, optimizer = build()
    schedules = [Schedule(optimizer, "lr", "linear", 10) for _ in range(2)]
    with pytest.raises(ArgumentError, match="schedules: lr, lr"):
        NativeEngine(model, optimizer, schedules=schedules)


def test_float16_is_refused_because_nothing_scales_the_loss() -> None:
    """A gradient of 1e-8 became 0 there, and the step counted as good."""
    model = nn.Linear(1, 1)
    with pytest.raises(ArgumentError, match=r"autocast: torch.float16: use torch.bfloat16 or None"):
        NativeEngine(model, Plain(torch.optim.SGD(model.parameters(), lr=0.1)), autocast=torch.float16)
