"""A step of SAM sees one batch: what a forward counts or averages is that of the first pass, however SAM is built."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

import distsam
from distsam.optim.replay import KeptBuffers

NORMS: dict[str, Callable[[], nn.Module]] = {
    "batch": lambda: nn.BatchNorm1d(3),
    "instance": lambda: nn.InstanceNorm1d(3, track_running_stats=True),
}


def closure_of(model: nn.Module, sam: distsam.SAM, x: Tensor) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        sam.zero_grad()
        # The layer runs twice in a pass.
        loss = model(x).square().sum() + model(x).sum() ** 2
        loss.backward()
        return loss

    return closure


@pytest.mark.parametrize("is_by_hand", [False, True])
@pytest.mark.parametrize("knows_model", [False, True])
@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS.keys())
def test_a_step_moves_running_statistics_once(
    norm: Callable[[], nn.Module], knows_model: bool, is_by_hand: bool
) -> None:
    """Without model= every batch was counted twice, without a word."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), norm())
    x, clean = torch.randn(16, 3, 6), norm()
    clean(model[0](x))
    clean(model[0](x))
    sam = distsam.SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.5, model=model if knows_model else None)
    closure = closure_of(model, sam, x)
    if is_by_hand:
        closure()
        with sam.perturbed():
            closure()
        sam.step()
    else:
        sam.step(closure)
    assert clean.running_mean.abs().sum() > 0
    for buffer, expected in zip(model[1].buffers(), clean.buffers(), strict=True):
        assert torch.equal(buffer, expected)


def test_statistics_of_layers_in_the_loss_and_called_in_evaluation_are_kept_too() -> None:
    torch.manual_seed(0)
    model, head = nn.Linear(6, 3), nn.BatchNorm1d(3)
    sam = distsam.SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.5, model=model)
    x = torch.randn(16, 6)

    def closure() -> Tensor:
        sam.zero_grad()
        loss = (head(model(x)) - 1).relu().sum()
        loss.backward()
        return loss

    sam.step(closure)
    assert int(head.num_batches_tracked) == 1
    head.eval()
    sam.step(closure)
    assert int(head.num_batches_tracked) == 1


class Counting(nn.Module):
    """Running state of its own kind: one buffer changed in place, one exchanged, one that only stands there."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("largest", torch.zeros(()))
        self.register_buffer("shift", torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.largest = torch.maximum(self.largest, self.weight.detach().max())
        return self.weight * x + self.shift


@pytest.mark.parametrize("knows_model", [False, True])
def test_any_buffer_that_a_second_forward_moves_is_that_of_the_first_pass(knows_model: bool) -> None:
    model = Counting()
    sam = distsam.SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=5.0, model=model if knows_model else None)
    sam.step(closure_of(model, sam, torch.ones(3)))
    assert model.calls == 2
    assert model.largest == 1.0


def test_the_power_iteration_of_a_spectral_norm_goes_one_step_a_batch() -> None:
    torch.manual_seed(0)
    model = spectral_norm(nn.Linear(6, 3))
    sam = distsam.SAM(torch.optim.SGD(model.parameters(), lr=0.0), rho=0.5)
    sam.step(closure_of(model, sam, torch.randn(4, 6)))
    torch.manual_seed(0)
    twin = spectral_norm(nn.Linear(6, 3))
    closure_of(twin, distsam.SAM(torch.optim.SGD(twin.parameters(), lr=0.0)), torch.randn(4, 6))()
    pairs = zip(model.buffers(), twin.buffers(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_no_hook_is_left_behind_and_statistics_come_back_when_the_second_pass_raises() -> None:
    model = nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3))
    sam = distsam.SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.5)
    x = torch.randn(16, 6)
    model(x).sum().backward()

    def second_pass() -> None:
        with sam.perturbed():
            model(x)
            raise KeyError("second")

    with pytest.raises(KeyError):
        second_pass()
    assert int(model[1].num_batches_tracked) == 1
    assert not torch.nn.modules.module._global_forward_pre_hooks


def test_statistics_are_kept_in_a_later_step_of_another_dtype() -> None:
    """The room of the copies stays from step to step; it must not be taken where it does not fit."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6))
    sam = distsam.SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.5)
    x = torch.randn(16, 6)
    sam.step(closure_of(model, sam, x))
    model.double()
    clean = nn.BatchNorm1d(6).double()
    clean.load_state_dict(model[1].state_dict())
    for _ in range(2):
        clean(model[0](x.double()))
    sam.step(closure_of(model, sam, x.double()))
    assert torch.equal(model[1].running_mean, clean.running_mean)
    assert model[1].num_batches_tracked == clean.num_batches_tracked == 4


def test_statistics_are_kept_after_a_step_under_inference_mode() -> None:
    """The copy that was made there could not be written to outside."""
    model = nn.BatchNorm1d(3)
    kept = KeptBuffers(None)
    with torch.inference_mode(), kept:
        model(torch.randn(4, 3))
    before = model.running_mean.clone()
    with kept:
        model(torch.randn(4, 3))
    assert torch.equal(model.running_mean, before)
