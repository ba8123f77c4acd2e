"""The formulas of the norm deviation, and its laws on real networks in float64; no step is taken."""

import math

import pytest
import torch
from torch import Tensor

import distsam
from distsam.balance import covariance, deviation_rate, max_over_min, norm_deviation, relative_deviation

SHAPE = (5, 4, 6)
SPECS = {
    "cp": distsam.cp(SHAPE, 3),
    "tucker": distsam.tucker(SHAPE, (3, 2, 4)),
    "tt": distsam.tt(SHAPE, (3, 4)),
    "tr": distsam.tr(SHAPE, 2),
}
RHO = 0.3


def problem(name: str) -> tuple[distsam.TensorNetwork, list[Tensor], list[Tensor], list[Tensor], float]:
    """A network with unequal norms; its cores G, gradients g and perturbed gradients g~, and u = 1 / ||g||."""
    generator = torch.Generator().manual_seed(7)
    spec = SPECS[name]
    norms = [1.0 + k for k in range(spec.num_cores)]
    network = distsam.TensorNetwork(spec, norms=norms, generator=generator, dtype=torch.float64)
    target = torch.randn(SHAPE, generator=generator, dtype=torch.float64)

    def gradient(cores: list[Tensor]) -> list[Tensor]:
        moved = distsam.TensorNetwork(spec, dtype=torch.float64)
        moved.load_cores(cores)
        loss = torch.nn.functional.smooth_l1_loss(moved.dense(), target, reduction="sum", beta=0.5)
        return list(torch.autograd.grad(loss, list(moved.cores)))

    cores = [c.detach() for c in network.cores]
    g = gradient(cores)
    u = 1 / math.sqrt(sum(float(x.square().sum()) for x in g))
    perturbed = gradient([c + RHO * u * x for c, x in zip(cores, g, strict=True)])
    return network, cores, g, perturbed, u


def inner(left: list[Tensor], right: list[Tensor]) -> Tensor:
    return torch.stack([(a * b).sum() for a, b in zip(left, right, strict=True)])


def test_norm_deviation_is_the_sum_of_squares_about_the_mean() -> None:
    # mean 4; (-3)^2 + (-1)^2 + 4^2 = 26
    assert float(norm_deviation([1.0, 3.0, 8.0])) == 26.0
    assert float(distsam.norm_deviation(torch.tensor([2.0, 2.0]))) == 0.0


def test_norm_deviation_is_half_the_mean_of_all_squared_differences() -> None:
    s = torch.tensor([1.0, 2.5, 7.0, 0.5], dtype=torch.float64)
    pairs = (s[:, None] - s[None, :]).square().sum() / (2 * len(s))
    assert float(norm_deviation(s)) == pytest.approx(float(pairs), rel=1e-14)


def test_companions_do_not_see_the_scale() -> None:
    s = torch.tensor([1.0, 2.5, 7.0], dtype=torch.float64)
    assert float(relative_deviation(3 * s)) == pytest.approx(float(relative_deviation(s)), rel=1e-14)
    assert float(max_over_min(3 * s)) == pytest.approx(7.0, rel=1e-14)


def test_covariance_is_the_population_one() -> None:
    assert float(covariance([1.0, 3.0], [2.0, 6.0])) == 2.0


@pytest.mark.parametrize("name", SPECS)
def test_eulers_identity_gives_one_number_for_every_core(name: str) -> None:
    _, cores, g, _, _ = problem(name)
    products = inner(cores, g)
    scale = max(float(c.norm() * x.norm()) for c, x in zip(cores, g, strict=True))
    assert float(products.max() - products.min()) / scale < 1e-12


@pytest.mark.parametrize("name", SPECS)
def test_the_exact_law_holds_where_the_first_order_one_does_not(name: str) -> None:
    _, cores, g, perturbed, u = problem(name)
    s, products = inner(cores, cores), inner(g, perturbed)
    lhs = (2 * (s - s.mean()) * -2 * inner(cores, perturbed)).sum()
    exact = deviation_rate(s, RHO * u * products)
    first_order = deviation_rate(s, RHO * u * inner(g, g))
    scale = 4 * RHO * u * len(s) * s.std(unbiased=False) * products.std(unbiased=False)
    assert float((lhs - exact).abs() / scale) < 1e-9
    assert float((lhs - first_order).abs() / scale) > 1e-3


@pytest.mark.parametrize("name", SPECS)
def test_what_the_coordinator_publishes_is_the_exact_law(name: str) -> None:
    network, cores, g, perturbed, u = problem(name)
    base = torch.optim.SGD(network.parameters(), lr=0.0)
    sam = distsam.SAM(base, rho=RHO)
    coordinator = distsam.BalanceCoordinator(network, sam)
    # The same g and g~ as above, put in place by hand: no loss, and lr 0, so that no step is taken.
    for core, grad in zip(network.cores, g, strict=True):
        core.grad = grad.clone()
    with sam.perturbed():
        for core, grad in zip(network.cores, perturbed, strict=True):
            core.grad = grad.clone()
    sam.step()
    s, products = inner(cores, cores), inner(g, perturbed)
    lhs = (2 * (s - s.mean()) * -2 * inner(cores, perturbed)).sum()
    scale = 4 * RHO * u * len(s) * s.std(unbiased=False) * products.std(unbiased=False)
    snapshot = coordinator.snapshot()
    assert abs(snapshot["balance/network/predicted_rate_exact"] - float(lhs)) / float(scale) < 1e-9
    expected = float(deviation_rate(s, RHO * u * inner(g, g)))
    assert snapshot["balance/network/predicted_rate"] == pytest.approx(expected, rel=1e-12)
    assert snapshot["balance/network/covariance"] == pytest.approx(float(covariance(s, inner(g, g))), rel=1e-12)
    assert snapshot["sam/grad_norm"] == pytest.approx(1 / u, rel=1e-12)
    assert snapshot["balance/network/norm_deviation"] == pytest.approx(float(norm_deviation(s)), rel=1e-12)
    assert snapshot["balance/network/measured_rate"] is None
