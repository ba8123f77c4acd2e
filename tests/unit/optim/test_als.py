"""Alternating least squares: each core at the minimum of the dense least-squares problem, the loss never up."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import distsam
from distsam.errors import ArgumentError
from distsam.optim import ALS, Plain
from distsam.optim.als import minimisers
from distsam.tensornet.environments import row_form

sys.path.append(str(Path(__file__).parents[1] / "tensornet"))
from einsum_reference import SPECS

SMALL = ["cp", "tucker", "tt", "tr", "matrix product", "one core", "mode of two cores", "triangle, two modes a core"]


class Problem:
    """A network and observed entries; `kind` says how little they determine."""

    def __init__(self, spec: distsam.NetworkSpec, kind: str, decay: float, dtype: torch.dtype = torch.float64) -> None:
        generator = torch.Generator().manual_seed(0)
        self.network = distsam.TensorNetwork(spec, dtype=dtype, generator=generator)
        count = {"many": 150, "few": 5, "none": 0, "the same": 30}[kind]
        columns = [torch.randint(size, (count,), generator=generator) for size in spec.shape]
        self.indices = torch.stack(columns, 1)
        if kind == "few":
            self.indices[:, 0] = 0  # all other rows are empty
        if kind == "the same":
            self.indices[:] = self.indices[0]
        self.targets = torch.randn(count, generator=generator, dtype=torch.float64)
        self.factor, self.decay = 1 / max(1, count), decay
        [cores] = distsam.core_networks(self.network)
        self.als = ALS(cores, self.indices, self.targets, self.factor, weight_decay=decay)

    def objective(self) -> float:
        with torch.no_grad():
            cores = [core.double() for core in self.network.cores]
            exact = distsam.TensorNetwork.holding(self.network.spec, cores, torch.float64)
            loss = self.factor * (exact.at(self.indices) - self.targets).square().sum()
            return float(loss + self.decay / 2 * sum(core.square().sum() for core in cores))


@pytest.mark.parametrize("decay", [0.0, 1e-3])
@pytest.mark.parametrize("kind", ["many", "few", "none", "the same"])
@pytest.mark.parametrize("name", SMALL)
def test_the_objective_never_rises_and_no_weight_is_ever_nan(name: str, kind: str, decay: float) -> None:
    problem = Problem(SPECS[name], kind, decay)
    values = [problem.objective()]
    for _ in range(10):
        problem.als.step()
        values.append(problem.objective())
        assert all(torch.isfinite(core).all() for core in problem.network.cores)
    # Rounding of a sum of squares that was as large as the first.
    assert max(np.diff(values)) <= 1e-13 * values[0]
    if kind == "many":
        assert values[-1] < values[0]


@pytest.mark.parametrize("shape", ["cp", "tt"])
def test_bonds_of_1_and_float32_never_raise_the_objective(shape: str) -> None:
    spec = distsam.cp((5, 4, 3), 1) if shape == "cp" else distsam.tt((5, 4, 3), 1)
    problem = Problem(spec, "many", 1e-3, torch.float32)
    values = [problem.objective()]
    for _ in range(5):
        problem.als.step()
        values.append(problem.objective())
    # A core is stored in float32: the square of its relative error, about a minimum.
    assert max(np.diff(values)) <= 1e-12 * values[0]


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("name", SMALL)
def test_the_last_core_is_the_least_squares_solution_of_numpy(name: str, decay: float) -> None:
    problem = Problem(SPECS[name], "many", decay)
    problem.als.step()
    core = problem.network.cores[-1]
    point = core.detach().clone().requires_grad_()

    def residuals(core_k: Tensor) -> Tensor:
        cores = [*(c.detach() for c in problem.network.cores[:-1]), core_k]
        return problem.network._contractor.entries(cores, problem.indices) - problem.targets

    jacobian = torch.autograd.functional.jacobian(residuals, point).reshape(len(problem.targets), -1).numpy()
    right = problem.targets.numpy() - (residuals(torch.zeros_like(point)) + problem.targets).detach().numpy()
    root = np.sqrt(2 * problem.factor)
    stacked = np.concatenate([root * jacobian, np.sqrt(decay) * np.eye(jacobian.shape[1])])
    expected = np.linalg.lstsq(stacked, np.concatenate([root * right, np.zeros(jacobian.shape[1])]), rcond=1e-12)[0]
    # What the entries leave open may be anything, so the fits are compared, and with decay the cores too.
    fit = jacobian @ core.detach().numpy().ravel()
    np.testing.assert_allclose(fit, jacobian @ expected, rtol=0, atol=1e-9)
    if decay:
        np.testing.assert_allclose(core.detach().numpy().ravel(), expected, rtol=0, atol=1e-9)


def test_a_row_without_entries_stays_or_with_decay_goes_to_zero() -> None:
    for decay in (0.0, 0.1):
        problem = Problem(SPECS["cp"], "few", decay)
        before = problem.network.cores[0].detach().clone()
        problem.als.step()
        empty = problem.network.cores[0].detach()[1:]
        if decay:
            assert empty.abs().max() < 1e-14
        else:
            assert torch.equal(empty, before[1:])


def test_a_matrix_that_cannot_be_factored_gives_no_step_instead_of_nan() -> None:
    sums = torch.full((2, 3, 4), float("inf"), dtype=torch.float64)
    sums[1] = torch.eye(3, 4, dtype=torch.float64)
    old = torch.ones(2, 3, dtype=torch.float64)
    found = minimisers(sums, old, 0.0)
    assert torch.equal(found[0], old[0])
    assert found[1].abs().max() < 1e-13  # by the tiny pull towards the old row


def test_the_solution_of_a_singular_matrix_is_the_one_nearest_to_the_old_row() -> None:
    sums = torch.zeros(1, 2, 3, dtype=torch.float64)
    sums[0] = torch.tensor([[1.0, 1.0, 4.0], [1.0, 1.0, 4.0]])  # g_0 + g_1 = 4
    found = minimisers(sums, torch.tensor([[3.0, -1.0]], dtype=torch.float64), 0.0)
    np.testing.assert_allclose(found, [[4.0, 0.0]], atol=1e-12)


def test_a_frozen_core_stays() -> None:
    problem = Problem(SPECS["cp"], "many", 0.0)
    problem.network.cores[1].requires_grad_(False)
    before = [core.detach().clone() for core in problem.network.cores]
    problem.als.step()
    assert [torch.equal(*pair) for pair in zip(before, problem.network.cores, strict=True)] == [False, True, False]


def test_a_rescale_before_the_sweep_acts() -> None:
    """With decay the balance of the cores is a part of the objective; a core of its own factor begins elsewhere."""

    def cores_after(alpha: float) -> list[Tensor]:
        problem = Problem(SPECS["cp"], "many", 1e-2)
        problem.als.param_groups[0]["lr"] = 0.1
        optimizer = distsam.DAS(problem.als, distsam.core_networks(problem.network), alpha=alpha)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = problem.factor * (problem.network.at(problem.indices) - problem.targets).square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        return [core.detach() for core in problem.network.cores]

    plain, scaled = cores_after(0.0), cores_after(1.0)
    assert all((a - b).abs().max() > 1e-6 for a, b in zip(plain, scaled, strict=True))


def test_a_step_that_is_not_finite_is_skipped() -> None:
    problem = Problem(SPECS["cp"], "many", 0.0)
    before = [core.detach().clone() for core in problem.network.cores]
    optimizer = Plain(problem.als)
    optimizer.step(lambda: _backward(problem.network.dense().sum() * float("nan")))
    assert optimizer.num_skipped == 1
    assert all(torch.equal(a, b) for a, b in zip(before, problem.network.cores, strict=True))


def _backward(loss: Tensor) -> Tensor:
    loss.backward()
    return loss


def test_a_core_too_large_to_be_solved_for_is_refused() -> None:
    network = distsam.TensorNetwork(distsam.tucker((20, 20, 20), (17, 17, 17)))
    assert row_form(network.spec, 0).num_unknowns == 17**3
    [cores] = distsam.core_networks(network)
    with pytest.raises(ArgumentError, match="core central has 4,913 unknowns that hang together; at most 4,096"):
        ALS(cores, torch.zeros(0, 3, dtype=torch.int64), torch.zeros(0), 1.0)
