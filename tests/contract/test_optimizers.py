"""What a step of every optimizer of distsam promises."""

import copy

import pytest
import torch
from methods import BASES, TARGET, Build, Model, are_equal, closure_of, every_method, run, weights
from torch import Tensor

import distsam


@every_method
@pytest.mark.parametrize("base", BASES)
def test_the_loss_falls_over_any_base(build: Build, base: str) -> None:
    model, optimizer = run(build, base, 1)
    closure = closure_of(model, optimizer)
    before = float(closure().detach())
    for _ in range(30):
        optimizer.step(closure)
    assert float(closure().detach()) < before


@every_method
def test_step_returns_the_loss_at_the_weights_before_the_step(build: Build) -> None:
    model, optimizer = run(build, "sgd", 2)
    expected = (model() - TARGET).square().mean()
    loss = optimizer.step(closure_of(model, optimizer))
    assert torch.equal(loss, expected.detach())
    assert not loss.requires_grad


@every_method
def test_frozen_and_unused_parameters_stay(build: Build) -> None:
    model, _ = run(build, "adamw", 3)
    assert model.frozen.item() == 1.5
    assert model.unused.item() == 2.5


@every_method
def test_a_non_finite_loss_skips_the_step_and_leaves_no_trace(build: Build) -> None:
    model, optimizer = run(build, "adamw", 2)
    before = weights(model)
    state = copy.deepcopy(optimizer.state_dict())

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (model() - TARGET).square().mean() * float("inf")
        loss.backward()
        return loss

    optimizer.step(closure)
    assert are_equal(weights(model), before)
    assert optimizer.num_skipped == 1
    after = optimizer.state_dict()["state"]
    assert all(torch.equal(v, after[k][n]) for k, s in state["state"].items() for n, v in s.items())


@every_method
@pytest.mark.parametrize("bad_pass", [1, 2])
def test_a_loss_that_is_not_finite_skips_the_step_though_its_gradient_is(build: Build, bad_pass: int) -> None:
    model, optimizer = run(build, "sgd", 1)
    before, calls = weights(model), 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        loss = closure_of(model, optimizer)()
        return loss + float("inf") if calls == bad_pass else loss

    optimizer.step(closure)
    has_pass = calls >= bad_pass
    assert optimizer.num_skipped == has_pass
    assert are_equal(weights(model), before) == has_pass


@every_method
def test_so_many_skipped_steps_in_a_row_end_the_run(build: Build) -> None:
    model = Model()
    optimizer = build(BASES["sgd"](model), model)
    bad = lambda: (model().sum() * float("nan")).backward() or torch.tensor(float("nan"))  # noqa: E731
    for _ in range(9):
        optimizer.step(bad)
    optimizer.step(closure_of(model, optimizer))
    for _ in range(9):
        optimizer.step(bad)
    with pytest.raises(distsam.TrainingDiverged, match="10 steps in a row"):
        optimizer.step(bad)


@every_method
def test_a_resume_goes_on_counting_the_skipped_steps_in_a_row(build: Build) -> None:
    model = Model()
    optimizer, resumed = (build(BASES["sgd"](model), model) for _ in range(2))
    bad = lambda: (model().sum() * float("nan")).backward() or torch.tensor(float("nan"))  # noqa: E731
    for _ in range(9):
        optimizer.step(bad)
    resumed.load_counters(optimizer.counters())
    with pytest.raises(distsam.TrainingDiverged, match="10 steps in a row"):
        resumed.step(bad)
    assert resumed.num_skipped == 10


@every_method
def test_zero_gradients_change_nothing(build: Build) -> None:
    model, _ = run(build, "sgd", 1)
    optimizer = build(torch.optim.SGD(model.parameters(), lr=0.05), model)
    before = weights(model)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = 0.0 * model().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert optimizer.num_skipped == 0
    moved = [not torch.equal(a, b) for a, b in zip(weights(model), before, strict=True)]
    # oBAR looks at no gradient: it is the one that still moves.
    rules = [w.rule for w in optimizer.chain() if isinstance(w, distsam.BAR)]
    assert any(moved) == ("obar" in rules)


@every_method
def test_resuming_from_the_state_dict_gives_the_same_run(build: Build) -> None:
    straight, undisturbed = run(build, "adamw", 6)
    first, optimizer = run(build, "adamw", 3)
    second = Model()
    second.load_state_dict(first.state_dict())
    resumed = build(BASES["adamw"](second), second)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    resumed.load_counters(optimizer.counters())
    twins = dict(zip(first.parameters(), second.parameters(), strict=True))
    for old, new in zip(optimizer.chain(), resumed.chain(), strict=True):
        for param, state in old.own_state.items():
            new.own_state[twins[param]] = {key: value.clone() for key, value in state.items()}
    for _ in range(3):
        resumed.step(closure_of(second, resumed))
    assert are_equal(weights(second), weights(straight))
    assert resumed.num_steps == 6
    assert resumed.counters() == undisturbed.counters()


@every_method
def test_groups_and_state_are_those_of_the_base(build: Build) -> None:
    model = Model()
    base = BASES["sgd"](model)
    optimizer = build(base, model)
    assert optimizer.param_groups is base.param_groups
    assert optimizer.state is base.state
    assert optimizer.base_optimizer is base
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    optimizer.step(closure_of(model, optimizer))
    scheduler.step()
    assert base.param_groups[0]["lr"] == 0.025


@every_method
def test_a_parameter_group_added_later_is_moved(build: Build) -> None:
    model = Model()
    optimizer = build(torch.optim.SGD([*model.left.parameters(), *model.right.parameters()], lr=0.05), model)
    optimizer.step(closure_of(model, optimizer))
    assert model.bias.item() == pytest.approx(0.3)
    optimizer.add_param_group({"params": [model.bias], "lr": 0.01})
    optimizer.step(closure_of(model, optimizer))
    assert model.bias.item() != pytest.approx(0.3)


@every_method
def test_a_base_that_steps_by_itself_is_refused(build: Build) -> None:
    model = Model()
    with pytest.raises(TypeError, match="LBFGS"):
        build(torch.optim.LBFGS(model.parameters()), model)


@every_method
def test_a_closure_without_a_loss_is_refused(build: Build) -> None:
    _, optimizer = run(build, "sgd", 1)
    with pytest.raises(ValueError, match="closure returned None"):
        optimizer.step(lambda: None)


@every_method
def test_a_copy_goes_on_by_itself(build: Build) -> None:
    model, optimizer = run(build, "sgd", 2)
    twin, copied = copy.deepcopy((model, optimizer))
    for m, o in ((model, optimizer), (twin, copied)):
        o.step(closure_of(m, o))
    assert are_equal(weights(model), weights(twin))
    assert twin.left.cores[0] is not model.left.cores[0]
