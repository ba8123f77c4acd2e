"""SAM in one process: what comes back, what is replayed, what is refused."""

import pytest
import torch
from torch import Tensor, nn

import distsam


def linear_problem(dtype: torch.dtype = torch.float32) -> tuple[nn.Linear, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Linear(6, 3).to(dtype)
    return model, torch.randn(20, 6, dtype=dtype), torch.randn(20, 3, dtype=dtype)


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def test_the_perturbation_has_length_rho_along_the_gradient() -> None:
    model, x, y = linear_problem(torch.float64)
    sam = distsam.SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.25)
    (model(x) - y).square().mean().backward()
    grads = [p.grad.clone() for p in model.parameters()]
    before = weights(model)
    with sam.perturbed():
        moves = [p.detach() - w for p, w in zip(model.parameters(), before, strict=True)]
        assert torch.stack([m.square().sum() for m in moves]).sum().sqrt().item() == pytest.approx(0.25, rel=1e-12)
        norm = torch.stack([g.square().sum() for g in grads]).sum().sqrt()
        for move, grad in zip(moves, grads, strict=True):
            torch.testing.assert_close(move, 0.25 * grad / norm, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("scope", ["network", "core"])
def test_a_scope_measures_each_radius_by_its_own_norm(scope: str) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = distsam.TensorNetwork(distsam.cp((4, 5), 2), dtype=torch.float64)
            self.b = distsam.TensorNetwork(distsam.cp((4, 5), 3), dtype=torch.float64)
            self.shift = nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))

    torch.manual_seed(0)
    model = Model()
    sam = distsam.SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.25, scope=scope, model=model)
    loss = (model.a.dense() + 3 * model.b.dense()).square().sum() + model.shift.pow(2).sum()
    loss.backward()
    before = weights(model)
    with sam.perturbed():
        moves = {n: (p.detach() - w) for (n, p), w in zip(model.named_parameters(), before, strict=True)}
    groups = {"network": [("a.cores.0", "a.cores.1"), ("b.cores.0", "b.cores.1"), ("shift",)]}
    groups["core"] = [(n,) for n in moves]
    for group in groups[scope]:
        length = torch.stack([moves[n].square().sum() for n in group]).sum().sqrt().item()
        assert length == pytest.approx(0.25, rel=1e-12), group


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_weights_come_back_bit_for_bit_a_hundred_times(dtype: torch.dtype) -> None:
    model, x, y = linear_problem(dtype)
    sam = distsam.SAM(torch.optim.SGD(model.parameters(), lr=0.0), rho=0.5)
    before = weights(model)
    storage = [p.data_ptr() for p in model.parameters()]

    def closure() -> Tensor:
        sam.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        return loss

    for _ in range(100):
        sam.step(closure)
    assert all(torch.equal(a, b) for a, b in zip(weights(model), before, strict=True))
    assert [p.data_ptr() for p in model.parameters()] == storage


@pytest.mark.parametrize("raised", [RuntimeError, KeyboardInterrupt])
def test_weights_come_back_when_the_second_pass_raises(raised: type[BaseException]) -> None:
    model, x, y = linear_problem()
    sam = distsam.SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.5)
    before = weights(model)
    moved = []

    def closure() -> Tensor:
        sam.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        moved.append(not torch.equal(model.weight, before[0]))
        if len(moved) == 2:
            raise raised("second pass")
        return loss

    with pytest.raises(raised, match="second pass"):
        sam.step(closure)
    assert moved == [False, True]
    assert all(torch.equal(a, b) for a, b in zip(weights(model), before, strict=True))
    sam.step(closure)  # and the next step is an ordinary one
    assert sam.num_steps == 1


def test_both_phases_by_hand_equal_the_closure() -> None:
    results = []
    for by_hand in (False, True):
        model, x, y = linear_problem()
        sam = distsam.SAM(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), rho=0.5)

        def loss_of(model: nn.Linear = model, x: Tensor = x, y: Tensor = y) -> Tensor:
            loss = (model(x) - y).square().mean()
            loss.backward()
            return loss

        for _ in range(3):
            sam.zero_grad()
            if by_hand:
                loss_of()
                with sam.perturbed():
                    loss_of()
                sam.step()
            else:
                sam.step(lambda sam=sam, loss_of=loss_of: (sam.zero_grad(), loss_of())[1])
        results.append(weights(model))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_losses_given_by_hand_are_reported_and_looked_at() -> None:
    model, x, y = linear_problem()
    sam = distsam.SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.5)
    with pytest.warns(UserWarning, match="holds no tensor network"):
        coordinator = distsam.BalanceCoordinator(model, sam)
    for second in (3.0, float("nan")):
        sam.zero_grad()
        (model(x) - y).square().mean().backward()
        with sam.perturbed(loss=1.0):
            (model(x) - y).square().mean().backward()
        sam.step(perturbed_loss=second)
        if second == 3.0:
            assert coordinator.snapshot()["sam/loss_gap"] == 2.0
    assert (sam.num_steps, sam.num_skipped) == (2, 1)


def test_a_step_without_a_second_pass_is_refused() -> None:
    model, x, y = linear_problem()
    sam = distsam.SAM(torch.optim.SGD(model.parameters(), lr=0.1))
    (model(x) - y).square().mean().backward()
    with pytest.raises(RuntimeError, match="without a closure"):
        sam.step()


def test_a_step_after_a_second_pass_that_raised_is_refused() -> None:
    model, x, y = linear_problem()
    sam = distsam.SAM(torch.optim.SGD(model.parameters(), lr=0.1))
    (model(x) - y).square().mean().backward()
    with sam.perturbed():
        (model(x) - y).square().mean().backward()
    with pytest.raises(KeyError), sam.perturbed():
        raise KeyError("second")
    with pytest.raises(RuntimeError, match="without a closure"):
        sam.step()


def test_a_gradient_that_only_one_pass_has_leaves_no_perturbed_weight() -> None:
    a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    for first, second in (((a, b), (a,)), ((a,), (a, b))):
        sam = distsam.SAM(torch.optim.SGD([a, b], lr=0.0), rho=0.5)
        passes = iter((first, second))

        def closure(sam: distsam.SAM = sam, passes: object = passes) -> Tensor:
            sam.zero_grad()
            loss = torch.stack([p.square().sum() for p in next(passes)]).sum()
            loss.backward()
            return loss

        sam.step(closure)
        assert torch.equal(a, torch.ones(2))
        assert torch.equal(b, torch.ones(2))


def test_dropout_draws_the_same_mask_in_both_passes() -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.ones(64))
    sam = distsam.SAM(torch.optim.SGD([weight], lr=0.1), rho=0.1)
    masks = []

    def closure() -> Tensor:
        sam.zero_grad()
        masks.append(torch.dropout(torch.ones(64), 0.5, train=True))
        loss = (weight * masks[-1]).square().sum()
        loss.backward()
        return loss

    sam.step(closure)
    sam.step(closure)
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[2], masks[3])
    assert not torch.equal(masks[0], masks[2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rho": -0.1}, "rho=-0.1"),
        ({"rho": float("nan")}, "rho=nan"),
        ({"scope": "layer"}, "scope='layer'"),
        ({"scope": "network"}, "pass model="),
        ({"max_skipped": 0}, "max_skipped=0"),
    ],
)
def test_arguments_out_of_range_are_refused_by_name(arguments: dict, message: str) -> None:
    model, _, _ = linear_problem()
    with pytest.raises(ValueError, match=message):
        distsam.SAM(torch.optim.SGD(model.parameters(), lr=0.1), **arguments)


def test_a_class_instead_of_an_optimizer_is_refused() -> None:
    with pytest.raises(TypeError, match="not its class"):
        distsam.SAM(torch.optim.SGD)


def test_sam_inside_a_rescale_is_refused() -> None:
    network = distsam.TensorNetwork(distsam.cp((4, 5), 2))
    sam = distsam.SAM(torch.optim.SGD(network.parameters(), lr=0.1))
    with pytest.raises(TypeError, match="SAM outermost"):
        distsam.DAS(sam, distsam.core_networks(network), alpha=0.1)
    with pytest.raises(TypeError, match="SAM outermost"):
        distsam.SAM(sam)
