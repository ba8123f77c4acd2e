import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from distsam.train.run_state import BestWeights, make_room, put_weights, run_tensors


def build(optimizer: str) -> tuple[nn.Module, Optimizer]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    if optimizer == "sgd":
        return model, SGD(model.parameters(), lr=0.1)
    if optimizer == "momentum":
        return model, SGD(model.parameters(), lr=0.1, momentum=0.9)
    return model, {"adam": Adam, "adamw": AdamW}[optimizer](model.parameters(), lr=0.1)


def step(model: nn.Module, optimizer: Optimizer, count: int) -> None:
    for i in range(count):
        optimizer.zero_grad()
        model(torch.full((4, 3), float(i))).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam", "adamw"])
def test_a_restored_optimizer_goes_on_bit_for_bit(name: str) -> None:
    model, optimizer = build(name)
    step(model, optimizer, 3)
    best = BestWeights()
    best.consider(model, 3, 0.5)
    saved = {key: value.clone() for key, value in run_tensors(model, optimizer, best).items()}
    step(model, optimizer, 2)

    other, other_optimizer = build(name)
    other_best = BestWeights()
    shapes = {key: (value.shape, value.dtype) for key, value in saved.items()}
    room = make_room(other, other_optimizer, other_best, shapes)
    assert room.keys() == saved.keys()
    for key, value in room.items():
        value.copy_(saved[key])
    step(other, other_optimizer, 2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(other_best.tensors[key], value) for key, value in best.tensors.items())


def test_the_best_weights_are_a_copy_and_can_be_put_back() -> None:
    model, optimizer = build("adam")
    best = BestWeights()
    best.consider(model, 1, 0.5)
    kept = model.weight.detach().clone()
    step(model, optimizer, 1)
    best.consider(model, 2, 0.4)
    put_weights(model, best.tensors)
    assert torch.equal(model.weight, kept)
    assert (best.value, best.step, best.num_stale) == (0.5, 1, 1)


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), float("-inf")])
def test_a_score_that_is_no_number_is_never_the_best(value: float | None) -> None:
    model, _ = build("sgd")
    best = BestWeights()
    best.consider(model, 1, value)
    assert (best.value, best.num_stale, best.tensors) == (None, 1, {})


def test_only_a_better_finite_score_beats_the_best() -> None:
    model, _ = build("sgd")
    best = BestWeights()
    assert best.is_beaten_by(-5.0)
    best.consider(model, 1, 0.5)
    assert [best.is_beaten_by(value) for value in (None, float("nan"), 0.5, 0.6)] == [False, False, False, True]
