"""DAS and BAR against their formulas, written out here."""

import pytest
import torch
from torch import Tensor, nn
from two_networks import ETA, TwoNetworks, after_one_step, network_of, squares

import distsam
from distsam.balance import norm_deviation


@pytest.mark.parametrize("norm", ["cores", "global", "network"])
def test_das_equals_its_formula(norm: str) -> None:
    alpha = 0.7
    model, twin = TwoNetworks(), TwoNetworks()
    base = torch.optim.SGD(model.parameters(), lr=ETA)
    got = after_one_step(model, distsam.DAS(base, distsam.core_networks(model), alpha=alpha, norm=norm))

    twin.loss().backward()
    networks = [list(twin.a.cores), list(twin.b.cores)]
    gammas = [squares([c.grad for c in cores]) for cores in networks]
    totals = {
        "cores": [sum(g.sum() for g in gammas)] * 2,
        "global": [sum(g.sum() for g in gammas) + twin.bias.grad.square()] * 2,
        "network": [g.sum() for g in gammas],
    }[norm]
    for cores, gamma, total, result in zip(networks, gammas, totals, got, strict=True):
        s = squares([c.detach() for c in cores])
        lambdas = ETA * alpha / total.sqrt() * (gamma - gamma.mean()) / s
        assert lambdas.abs().max() < 0.1  # below the bound: the bare formula
        for core, lam, moved in zip(cores, lambdas, result, strict=True):
            expected = (1 + lam) * core.detach() - ETA * core.grad
            torch.testing.assert_close(moved, expected, rtol=1e-13, atol=1e-14)


def test_a_core_with_a_gradient_above_average_grows() -> None:
    model = TwoNetworks()
    model.loss().backward()
    gamma = squares([c.grad for c in model.a.cores])
    before = squares([c.detach() for c in model.a.cores])
    das = distsam.DAS(torch.optim.SGD(model.parameters(), lr=1e-9), distsam.core_networks(model), alpha=1e6)
    das.step()
    grew = squares([c.detach() for c in model.a.cores]) > before
    assert grew.tolist() == (gamma > gamma.mean()).tolist()


def test_lambda_is_bounded_alike_for_all_cores_of_a_network_and_counted() -> None:
    model = TwoNetworks()
    model.loss().backward()
    before = [c.detach().clone() for c in model.a.cores]
    gamma, s = squares([c.grad for c in model.a.cores]), squares(before)
    base = torch.optim.SGD(model.parameters(), lr=0.5)
    das = distsam.DAS(base, distsam.core_networks(model)[:1], alpha=1e6, lambda_max=0.05)
    for p in model.parameters():
        p.grad.mul_(1e-6)  # so that the base step is out of sight
    das.step()
    ratios = torch.stack(
        [(c.detach() * b).sum() / b.square().sum() for c, b in zip(model.a.cores, before, strict=True)]
    )
    wanted = (gamma - gamma.mean()) / s
    torch.testing.assert_close(ratios - 1, 0.05 * wanted / wanted.abs().max(), rtol=0, atol=1e-4)
    assert das.num_clipped == 1
    assert das.counters()["das/clipped"] == 1


def test_the_bound_is_that_of_the_largest_change_up_or_down() -> None:
    """Two light gradients and a heavy core under one heavy gradient: the largest lambda is a negative one."""
    cores = [nn.Parameter(torch.full((n,), size, dtype=torch.float64)) for n, size in ((1, 10.0), (1, 0.1), (1, 10.0))]
    for core, grad in zip(cores, (3.0, 1.0, 1.0), strict=True):
        core.grad = torch.full_like(core, grad * 1e-9)
    base = torch.optim.SGD(cores, lr=1.0)
    distsam.DAS(base, [network_of(cores)], alpha=1e12, lambda_max=0.05).step()
    assert [c.item() / size for c, size in zip(cores, (10.0, 0.1, 10.0), strict=True)] == pytest.approx(
        [1 + 0.05 * 16 / 8 * 1e-4, 0.95, 1 - 0.05 * 1e-4], rel=1e-7
    )


def test_das_with_the_global_norm_and_alpha_rho_moves_q_as_sam_does_to_first_order() -> None:
    """Half the radius, half the difference: it is of second order in rho."""

    def change(optimizer_of: object, rho: float) -> Tensor:
        model = TwoNetworks()
        q = norm_deviation(squares([c.detach() for c in model.a.cores]))
        cores = after_one_step(model, optimizer_of(model, rho))[0]
        return (norm_deviation(squares(cores)) - q) / 1e-7

    def sgd(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=1e-7)

    plain = change(lambda model, rho: distsam.SAM(sgd(model), rho=0.0), 0.0)
    gaps = []
    for rho in (2e-2, 1e-2, 5e-3):
        sam = change(lambda model, r: distsam.SAM(sgd(model), rho=r), rho) - plain
        das = (
            change(lambda model, r: distsam.DAS(sgd(model), distsam.core_networks(model), alpha=r, norm="global"), rho)
            - plain
        )
        gaps.append(float((sam - das) / sam))
    assert abs(gaps[-1]) < 0.01
    assert gaps[0] / gaps[1] == pytest.approx(2, rel=0.2)


def test_zero_cores_and_zero_gradients_are_left_alone() -> None:
    network = distsam.TensorNetwork(distsam.cp((4, 5, 6), 2), dtype=torch.float64)
    with torch.no_grad():
        network.cores[1].zero_()
    das = distsam.DAS(torch.optim.SGD(network.parameters(), lr=0.1), distsam.core_networks(network), alpha=0.5)
    after_loss = network.dense().square().sum()  # every gradient is zero: each has a zero factor
    after_loss.backward()
    before = [c.detach().clone() for c in network.cores]
    das.step()
    assert all(torch.equal(a, b) for a, b in zip(before, network.cores, strict=True))
    assert das.num_skipped == 0


@pytest.mark.parametrize("rule", ["nbar", "obar"])
def test_bar_on_two_cores_is_the_published_rule(rule: str) -> None:
    alpha, eta = 0.5, 0.01
    x = nn.Parameter(torch.tensor([[3.0], [1.0]], dtype=torch.float64))
    y = nn.Parameter(torch.tensor([[1.0, 0.5]], dtype=torch.float64))
    (x @ y).square().sum().backward()
    up_x = x.grad.norm() >= y.grad.norm() if rule == "nbar" else not x.detach().norm() >= y.detach().norm()
    sign = 1 if up_x else -1
    expected_x = (1 + sign * alpha * eta) * x.detach() - eta * x.grad
    expected_y = (1 - sign * alpha * eta) * y.detach() - eta * y.grad
    network = network_of([x, y])
    distsam.BAR(torch.optim.SGD([x, y], lr=eta), [network], alpha=alpha, rule=rule).step()
    torch.testing.assert_close(x.detach(), expected_x, rtol=1e-14, atol=0)
    torch.testing.assert_close(y.detach(), expected_y, rtol=1e-14, atol=0)


def test_cores_of_equal_norm_are_a_tie_for_obar() -> None:
    network = distsam.TensorNetwork(distsam.tt((4, 5, 6), 3), dtype=torch.float64)
    bar = distsam.BAR(
        torch.optim.SGD(network.parameters(), lr=0.1), distsam.core_networks(network), alpha=0.5, rule="obar"
    )
    before = [c.detach().clone() for c in network.cores]
    for c in network.cores:
        c.grad = torch.zeros_like(c)
    bar.step()
    assert all(torch.equal(a, b) for a, b in zip(before, network.cores, strict=True))


def test_norms_that_differ_by_more_than_rounding_are_no_tie() -> None:
    x, y = (nn.Parameter(torch.full((4,), size, dtype=torch.float64)) for size in (1.0, 1.0 + 1e-10))
    x.grad, y.grad = torch.zeros_like(x), torch.zeros_like(y)
    distsam.BAR(torch.optim.SGD([x, y], lr=0.1), [network_of([x, y])], alpha=0.5, rule="obar").step()
    assert (x > 1.04).all()
    assert (y < 0.96).all()


def test_each_group_rescales_with_its_own_learning_rate() -> None:
    network = distsam.TensorNetwork(distsam.tt((4, 5, 6), 3), norms=(1, 2, 3), dtype=torch.float64)
    rates = [0.1, 0.2, 0.4]
    groups = [{"params": [c], "lr": r} for c, r in zip(network.cores, rates, strict=True)]
    bar = distsam.BAR(torch.optim.SGD(groups), distsam.core_networks(network), alpha=0.5, rule="obar")
    before = [c.detach().clone() for c in network.cores]
    for c in network.cores:
        c.grad = torch.zeros_like(c)
    bar.step()
    ratios = [(c.detach() / b).mean().item() for c, b in zip(network.cores, before, strict=True)]
    # squared norms 1, 4, 9 (up to scale), mean 4.67: light, light, heavy
    assert ratios == pytest.approx([1 + 0.05, 1 + 0.1, 1 - 0.2], rel=1e-12)


def test_rates_and_places_survive_padding_and_another_order_of_networks() -> None:
    """Networks of 4 and 3 cores, each core at its own rate; then a coordinator that lists them the other way round."""
    model = TwoNetworks()
    cores = [*model.b.cores, *model.a.cores]
    groups = [{"params": [c], "lr": 0.01 * (k + 1)} for k, c in enumerate(cores)]
    networks = distsam.core_networks(model)[::-1]
    bar = distsam.BAR(torch.optim.SGD(groups), networks, alpha=0.5, rule="obar")

    def step() -> None:
        before = [c.detach().clone() for c in cores]
        for c in cores:
            c.grad = torch.zeros_like(c)
        bar.step()
        for count, start in ((3, 0), (4, 3)):
            s = squares(before[start : start + count])
            signs = -torch.sign(s - s.mean())
            for k in range(count):
                expected = before[start + k] * (1 + 0.5 * 0.01 * (start + k + 1) * signs[k])
                torch.testing.assert_close(cores[start + k].detach(), expected, rtol=1e-14, atol=0)

    step()
    distsam.BalanceCoordinator(model, bar)
    step()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": -1.0}, "alpha=-1.0"),
        ({"alpha": 0.1, "norm": "all"}, "norm='all'"),
        ({"alpha": 0.1, "lambda_max": 1.0}, "lambda_max=1.0"),
    ],
)
def test_das_refuses_arguments_by_name(arguments: dict, message: str) -> None:
    network = distsam.TensorNetwork(distsam.cp((4, 5), 2))
    with pytest.raises(ValueError, match=message):
        distsam.DAS(torch.optim.SGD(network.parameters(), lr=0.1), distsam.core_networks(network), **arguments)


def test_no_networks_and_shared_cores_are_refused() -> None:
    network = distsam.TensorNetwork(distsam.cp((4, 5), 2))
    base = torch.optim.SGD(network.parameters(), lr=0.1)
    with pytest.raises(TypeError, match=r"pass core_networks\(model\)"):
        distsam.DAS(base, network, alpha=0.1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="networks is empty"):
        distsam.DAS(base, [], alpha=0.1)
    first, second = network.cores
    twice = network_of([first, second, first])
    first.grad, second.grad = torch.ones_like(first), torch.ones_like(second)
    with pytest.raises(ValueError, match="two networks"):
        distsam.DAS(base, [twice], alpha=0.1).step()
    with pytest.raises(ValueError, match="rule='gbar'"):
        distsam.BAR(base, distsam.core_networks(network), alpha=0.1, rule="gbar")


def test_a_core_that_has_all_but_vanished_stays_finite() -> None:
    network = distsam.TensorNetwork(distsam.cp((4, 5, 6), 2), dtype=torch.float64)
    with torch.no_grad():
        network.cores[1].mul_(1e-158)
    das = distsam.DAS(torch.optim.SGD(network.parameters(), lr=0.1), distsam.core_networks(network), alpha=0.5)
    network.dense().sum().backward()
    das.step()
    assert all(torch.isfinite(c).all() for c in network.cores)


def test_the_count_of_bounded_rescales_survives_a_resume() -> None:
    network = distsam.TensorNetwork(distsam.tt((4, 5, 6), 3), dtype=torch.float64)
    das = distsam.DAS(torch.optim.SGD(network.parameters(), lr=0.1), distsam.core_networks(network), alpha=1e9)
    network.dense().square().sum().backward()
    das.step()
    assert das.num_clipped == 1
    resumed = distsam.SAM(
        distsam.DAS(torch.optim.SGD(network.parameters(), lr=0.1), distsam.core_networks(network), alpha=1e9)
    )
    for count in (1, 5, 3):
        resumed.load_counters({**das.counters(), "das/clipped": count})
        assert resumed.counters()["das/clipped"] == count
