"""What every optimizer of distsam promises to whoever watches it: coordinator and meter."""

from types import NoneType

import pytest
import torch
from methods import BASES, METHODS, Build, Model, are_equal, closure_of, every_method, run, weights
from torch import Tensor, nn

import distsam
from distsam.optim import TwoPass

# No law of the first order: epsilon is not along the gradient. None at all: the base does not step along one.
WITHOUT_LAW = {"asam": ("predicted_rate",), "memory": ("predicted_rate", "predicted_rate_exact")}


@every_method
def test_the_snapshot_has_every_published_name(build: Build) -> None:
    model = Model()
    optimizer = build(BASES["sgd"](model), model)
    coordinator = distsam.BalanceCoordinator(model, optimizer)
    for _ in range(2):
        optimizer.step(closure_of(model, optimizer))
    snapshot = coordinator.snapshot()
    metrics = (
        "norm_deviation covariance relative_deviation max_over_min predicted_rate predicted_rate_exact measured_rate"
    )
    for name in ("left", "right"):
        for metric in metrics.split():
            is_known = metric not in WITHOUT_LAW.get(optimizer.name, ())
            assert isinstance(snapshot[f"balance/{name}/{metric}"], float if is_known else NoneType), metric
        cores, names = getattr(model, name).cores, getattr(model, name).spec.core_names
        norms_sq = [snapshot[f"balance/{name}/core_norm_sq/{core}"] for core in names]
        assert norms_sq == pytest.approx([float(c.detach().double().square().sum()) for c in cores], rel=1e-12)
    assert snapshot["sam/skipped"] == 0
    assert snapshot["sam/grad_norm"] > 0
    has_second_pass = isinstance(optimizer, TwoPass) and optimizer.ascent.wants_second(2)
    assert (snapshot["sam/loss_gap"] is not None) == has_second_pass


@every_method
def test_rows_are_published_one_pass_later_at_the_log_cadence(build: Build) -> None:
    model = Model()
    optimizer = build(BASES["sgd"](model), model)
    coordinator = distsam.BalanceCoordinator(model, optimizer, every=3)
    published = []
    direct = {}
    for step in range(1, 7):
        optimizer.step(closure_of(model, optimizer))
        direct[step] = coordinator.snapshot()
        published += [(step, *row) for row in coordinator.poll()]
    published += [(6, *row) for row in coordinator.flush()]
    assert [(when, step) for when, step, _ in published] == [(2, 1), (4, 3), (6, 6)]
    for _, step, numbers in published:
        assert {k for k, v in numbers.items() if v is None} == {k for k, v in direct[step].items() if v is None}
        known = {k: v for k, v in direct[step].items() if v is not None}
        assert {k: numbers[k] for k in known} == pytest.approx(known, rel=1e-12)


def test_core_norms_are_measured_where_they_are_published_and_one_step_later() -> None:
    model, optimizer = run(METHODS["plain"], "sgd", 0)
    coordinator = distsam.BalanceCoordinator(model, optimizer, every=4)
    assert [step for step in range(1, 10) if coordinator.wants_norms(step)] == [1, 2, 4, 5, 8, 9]
    has_norms = []
    measured = coordinator.on_first_pass
    coordinator.on_first_pass = lambda first: (has_norms.append(first.core_norms_sq is not None), measured(first))
    for _ in range(4):
        optimizer.step(closure_of(model, optimizer))
    assert has_norms == [True, True, False, True]


@every_method
def test_watching_changes_nothing_that_is_trained(build: Build) -> None:
    """A coordinator measures all networks of the model; the optimizer here owns one of them, and joins late."""

    def train(is_watched: bool) -> list[Tensor]:
        model = Model()
        part = nn.ModuleDict({"left": model.left})
        optimizer = build(torch.optim.SGD([*part.parameters(), model.bias], lr=0.05), part)
        for step in range(4):
            if is_watched and step == 1:
                distsam.BalanceCoordinator(model, optimizer)
            optimizer.step(closure_of(model, optimizer))
        return weights(model)

    assert are_equal(train(is_watched=True), train(is_watched=False))


@every_method
def test_a_group_added_to_the_base_is_measured_too(build: Build) -> None:
    model = Model()
    base = torch.optim.SGD([*model.left.parameters(), *model.right.parameters()], lr=0.05)
    optimizer = build(base, model)
    optimizer.step(closure_of(model, optimizer))
    base.add_param_group({"params": [model.bias], "lr": 0.01})
    optimizer.step(closure_of(model, optimizer))
    assert any(p is model.bias for p in optimizer.guard.meter.params)


@every_method
def test_rates_of_a_skipped_step_do_not_exist(build: Build) -> None:
    model, optimizer = run(build, "sgd", 1)
    coordinator = distsam.BalanceCoordinator(model, optimizer)

    def spoiled() -> Tensor:
        loss = closure_of(model, optimizer)()
        model.bias.grad.fill_(float("nan"))
        return loss

    optimizer.step(spoiled)
    snapshot = coordinator.snapshot()
    assert snapshot["sam/skipped"] == 1
    assert snapshot["balance/left/predicted_rate"] is None
    assert snapshot["balance/left/measured_rate"] is None


@every_method
def test_networks_of_another_model_and_second_coordinators_are_refused(build: Build) -> None:
    model, other = Model(), Model()

    def step_with_others_networks() -> None:
        optimizer = build(BASES["sgd"](model), other)
        optimizer.step(closure_of(model, optimizer))

    optimizer = build(BASES["sgd"](model), model)
    if any(w.networks for w in optimizer.chain()):
        with pytest.raises(ValueError, match=r"none of its cores is in the optimizer|the optimizer moves no core of a"):
            step_with_others_networks()
    distsam.BalanceCoordinator(model, optimizer)
    with pytest.raises(ValueError, match="has a coordinator already"):
        distsam.BalanceCoordinator(model, optimizer)
    for inner in list(optimizer.chain())[1:]:
        with pytest.raises(ValueError, match="give the coordinator the outermost one"):
            distsam.BalanceCoordinator(model, inner)
