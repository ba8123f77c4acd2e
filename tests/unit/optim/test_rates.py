"""The rates that the coordinator publishes, against what each method does, written out here."""

import pytest
import torch
from two_networks import ETA, Still, TwoNetworks, after_one_step, squares

import distsam
from distsam.balance import covariance, deviation_rate


def test_the_predicted_rate_holds_what_a_rescale_does() -> None:
    """4 K Cov(s, growth s), with the growth read off the weights; the base does not move."""
    model = TwoNetworks()
    groups = [{"params": list(model.parameters()), "lr": ETA}]
    das = distsam.DAS(Still(groups), distsam.core_networks(model), alpha=0.7)
    coordinator = distsam.BalanceCoordinator(model, das)
    before = [squares([c.detach() for c in n.cores]) for n in distsam.core_networks(model)]
    after = [squares(cores) for cores in after_one_step(model, das)]
    snapshot = coordinator.snapshot()
    for name, s, moved in zip("ab", before, after, strict=True):
        growth = ((moved / s).sqrt() - 1) / ETA
        expected = float(deviation_rate(s, growth * s))
        assert abs(expected) > 0.1
        assert snapshot[f"balance/{name}/predicted_rate"] == pytest.approx(expected, rel=1e-9)
        assert snapshot[f"balance/{name}/predicted_rate_exact"] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("scope", ["global", "network", "core"])
def test_the_predicted_rate_takes_each_cores_own_radius(scope: str) -> None:
    model, rho = TwoNetworks(), 0.1
    sam = distsam.SAM(torch.optim.SGD(model.parameters(), lr=ETA), rho=rho, scope=scope, model=model)
    coordinator = distsam.BalanceCoordinator(model, sam)
    model.loss().backward()
    networks = distsam.core_networks(model)
    gammas = [squares([c.grad for c in n.cores]) for n in networks]
    norms = [squares([c.detach() for c in n.cores]) for n in networks]
    total = sum(g.sum() for g in gammas) + model.bias.grad.square()
    after_one_step(model, sam)
    snapshot = coordinator.snapshot()
    for name, s, gamma in zip("ab", norms, gammas, strict=True):
        norm_sq = {"global": total, "network": gamma.sum(), "core": gamma}[scope]
        expected = float(deviation_rate(s, rho / norm_sq.sqrt() * gamma))
        assert snapshot[f"balance/{name}/predicted_rate"] == pytest.approx(expected, rel=1e-12)


def test_rates_are_unknown_where_cores_move_at_different_rates() -> None:
    model = TwoNetworks()
    groups = [{"params": [c], "lr": 0.001 * (k + 1)} for k, c in enumerate(model.a.cores)]
    optimizer = distsam.SAM(torch.optim.SGD([*groups, {"params": list(model.b.cores), "lr": 0.001}]))
    coordinator = distsam.BalanceCoordinator(model, optimizer)
    after_one_step(model, optimizer)
    snapshot = coordinator.snapshot()
    assert snapshot["balance/a/measured_rate"] is None
    assert snapshot["balance/a/predicted_rate"] is None
    assert isinstance(snapshot["balance/b/measured_rate"], float)


def test_a_coordinator_that_joins_late_reads_its_own_networks() -> None:
    """It reads the measured cores by position; the optimizer had measured one network only, the second of the model."""
    model = TwoNetworks()
    networks = distsam.core_networks(model)
    das = distsam.DAS(torch.optim.SGD(model.parameters(), lr=ETA), networks[1:], alpha=0.7)
    after_one_step(model, das)
    coordinator = distsam.BalanceCoordinator(model, das)
    das.zero_grad()
    model.loss().backward()
    norms_sq = [squares([c.detach() for c in n.cores]) for n in networks]
    gammas = [squares([c.grad for c in n.cores]) for n in networks]
    das.step()
    snapshot = coordinator.snapshot()
    for name, s, gamma in zip("ab", norms_sq, gammas, strict=True):
        assert snapshot[f"balance/{name}/covariance"] == pytest.approx(float(covariance(s, gamma)), rel=1e-12)
