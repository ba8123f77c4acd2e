"""What every optimizer of distsam promises. A new one adds a line to METHODS and inherits every test."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import distsam
from distsam.optim import Plain, Wrapper

Build = Callable[[Optimizer, nn.Module], Wrapper]

METHODS: dict[str, Build] = {
    "plain": lambda base, model: Plain(base),
    "sam": lambda base, model: distsam.SAM(base, rho=0.1),
    "sam:network": lambda base, model: distsam.SAM(base, rho=0.1, scope="network", model=model),
    "sam:core": lambda base, model: distsam.SAM(base, rho=0.1, scope="core", model=model),
    "das": lambda base, model: distsam.DAS(base, distsam.core_networks(model), alpha=0.1),
    "das:global": lambda base, model: distsam.DAS(base, distsam.core_networks(model), alpha=0.1, norm="global"),
    "das:network": lambda base, model: distsam.DAS(base, distsam.core_networks(model), alpha=0.1, norm="network"),
    "nbar": lambda base, model: distsam.BAR(base, distsam.core_networks(model), alpha=0.1),
    "obar": lambda base, model: distsam.BAR(base, distsam.core_networks(model), alpha=0.1, rule="obar"),
    "sam+das": lambda base, model: distsam.SAM(distsam.DAS(base, distsam.core_networks(model), alpha=0.1), rho=0.1),
    "das+nbar": lambda base, model: distsam.DAS(
        distsam.BAR(base, distsam.core_networks(model), alpha=0.1), distsam.core_networks(model), alpha=0.1
    ),
}
BASES: dict[str, Callable[[nn.Module], Optimizer]] = {
    "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
    "adamw": lambda model: torch.optim.AdamW(model.parameters(), lr=0.01),
    "rmsprop": lambda model: torch.optim.RMSprop(model.parameters(), lr=0.01),
}

every_method = pytest.mark.parametrize("build", METHODS.values(), ids=METHODS.keys())


class Model(nn.Module):
    """Two networks, a bias, a frozen parameter and one that the loss never sees."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.left = distsam.TensorNetwork(distsam.tt((4, 3, 5), 3), norms=(1, 2, 3), generator=generator)
        self.right = distsam.TensorNetwork(distsam.cp((4, 3, 5), 2), norms=(3, 1, 2), generator=generator)
        self.bias = nn.Parameter(torch.tensor([0.3]))
        self.frozen = nn.Parameter(torch.tensor([1.5]), requires_grad=False)
        self.unused = nn.Parameter(torch.tensor([2.5]))

    def forward(self) -> Tensor:
        return (self.left.dense() + self.right.dense() + self.bias) * self.frozen


TARGET = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(1))


def closure_of(model: nn.Module, optimizer: Optimizer) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (model() - TARGET).square().mean()
        loss.backward()
        return loss

    return closure


def run(build: Build, base: str, steps: int) -> tuple[nn.Module, Wrapper]:
    model = Model()
    optimizer = build(BASES[base](model), model)
    for _ in range(steps):
        optimizer.step(closure_of(model, optimizer))
    return model, optimizer


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def are_equal(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


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
    straight, _ = run(build, "adamw", 6)
    first, optimizer = run(build, "adamw", 3)
    second = Model()
    second.load_state_dict(first.state_dict())
    resumed = build(BASES["adamw"](second), second)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    resumed.load_counters(optimizer.counters())
    for _ in range(3):
        resumed.step(closure_of(second, resumed))
    assert are_equal(weights(second), weights(straight))
    assert resumed.num_steps == 6


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
            assert isinstance(snapshot[f"balance/{name}/{metric}"], float)
        norms_sq = [snapshot[f"balance/{name}/core_norm_sq/{i}"] for i in range(3)]
        cores = getattr(model, name).cores
        assert norms_sq == pytest.approx([float(c.detach().double().square().sum()) for c in cores], rel=1e-12)
    assert snapshot["sam/skipped"] == 0
    assert snapshot["sam/grad_norm"] > 0
    has_second_pass = isinstance(optimizer, distsam.SAM)
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
    optimizer = build(BASES["sgd"](model), other)
    if any(w.networks for w in optimizer.chain()):
        with pytest.raises(ValueError, match="none of its cores is in the optimizer"):
            optimizer.step(closure_of(model, optimizer))
    optimizer = build(BASES["sgd"](model), model)
    distsam.BalanceCoordinator(model, optimizer)
    with pytest.raises(ValueError, match="has a coordinator already"):
        distsam.BalanceCoordinator(model, optimizer)
    for inner in list(optimizer.chain())[1:]:
        with pytest.raises(ValueError, match="give the coordinator the outermost one"):
            distsam.BalanceCoordinator(model, inner)
