import json

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from distsam.engine import NativeEngine, model_tensors
from distsam.optim import Plain
from distsam.tasks.task import Goal
from distsam.train.run_state import BestWeights, RunState

GOAL = Goal("validation/r2", higher_is_better=True, columns=("r2",))
LOSS = Goal("validation/loss", higher_is_better=False, columns=("loss",))


def build(optimizer: str) -> tuple[nn.Module, Optimizer]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    if optimizer == "sgd":
        return model, SGD(model.parameters(), lr=0.1)
    if optimizer == "momentum":
        return model, SGD(model.parameters(), lr=0.1, momentum=0.9)
    return model, {"adam": Adam, "adamw": AdamW}[optimizer](model.parameters(), lr=0.1)


def step(model: nn.Module, engine: NativeEngine, count: int) -> None:
    for i in range(count):
        engine.step([lambda i=i: model(torch.full((4, 3), float(i))).square().sum()])  # type: ignore[misc]


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam", "adamw"])
def test_what_a_checkpoint_holds_goes_on_bit_for_bit(name: str) -> None:
    model, optimizer = build(name)
    engine, state = NativeEngine(model, Plain(optimizer)), RunState(BestWeights(GOAL))
    step(model, engine, 3)
    state.best.consider(engine.weights, 2, 0.5)
    state.best.consider(engine.weights, 3, 0.4)
    saved = {key: value.clone() for key, value in {**state.tensors(engine.weights()), **engine.state_tensors()}.items()}
    plain = json.loads(json.dumps({**state.plain(), "step": 3, "elapsed_s": 1.5, "engine": engine.state()}))
    step(model, engine, 2)

    other, other_optimizer = build(name)
    other_engine, other_state = NativeEngine(other, Plain(other_optimizer)), RunState(BestWeights(GOAL))
    shapes = {key: (value.shape, value.dtype) for key, value in saved.items()}
    other_state.allocate_best(other_engine.weights(), shapes)
    room = {**other_state.tensors(other_engine.weights()), **other_engine.allocate_state(shapes)}
    assert room.keys() == saved.keys()
    with torch.no_grad():
        for key, value in room.items():
            value.copy_(saved[key])
    other_engine.load_state(plain["engine"])
    other_state.load_plain(plain)
    assert (other_state.step, other_state.elapsed_s) == (3, 1.5)
    assert (other_state.best.value, other_state.best.step, other_state.best.num_stale) == (0.5, 2, 1)
    step(other, other_engine, 2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(other_state.best.tensors[key], value) for key, value in state.best.tensors.items())
    assert other_engine.num_steps == 5


def test_the_best_weights_are_a_copy_and_can_be_put_back() -> None:
    model, optimizer = build("adam")
    engine, best = NativeEngine(model, Plain(optimizer)), BestWeights(GOAL)
    best.consider(engine.weights, 1, 0.5)
    kept = model.weight.detach().clone()
    step(model, engine, 1)
    best.consider(engine.weights, 2, 0.4)
    engine.put_weights(best.tensors)
    assert torch.equal(model.weight, kept)
    assert (best.value, best.step, best.num_stale) == (0.5, 1, 1)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("goal", [GOAL, LOSS])
def test_a_score_that_is_not_finite_is_never_the_best(value: float, goal: Goal) -> None:
    model, _ = build("sgd")
    best = BestWeights(goal)
    best.consider(lambda: model_tensors(model), 1, value)
    assert (best.value, best.num_stale, best.tensors) == (None, 1, {})


def test_an_undefined_score_is_neither_better_nor_stale() -> None:
    """Training without validation entries ended early, because no evaluation was ever better."""
    model, _ = build("sgd")
    best = BestWeights(GOAL)
    best.consider(lambda: model_tensors(model), 1, None)
    assert (best.value, best.num_stale, best.tensors) == (None, 0, {})


def test_only_a_better_finite_score_beats_the_best() -> None:
    model, _ = build("sgd")
    best = BestWeights(GOAL)
    assert best.is_beaten_by(-5.0)
    best.consider(lambda: model_tensors(model), 1, 0.5)
    assert [best.is_beaten_by(value) for value in (None, float("nan"), 0.5, 0.6)] == [False, False, False, True]


def test_where_lower_is_better_the_lowest_is_kept() -> None:
    model, _ = build("sgd")
    best = BestWeights(LOSS)
    for at, value in enumerate((3.0, 1.0, 2.0)):
        best.consider(lambda: model_tensors(model), at, value)
    assert (best.value, best.step, best.num_stale) == (1.0, 1, 1)
