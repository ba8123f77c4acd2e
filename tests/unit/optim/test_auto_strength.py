"""What stands in place of auto: the formulas against plain transcriptions, and what they promise."""

import numpy as np
import pytest
import torch
from torch import nn
from two_networks import TwoNetworks

from distsam.optim import auto_bar_alpha, auto_das_alpha, auto_rho


def entries_of(params: list[nn.Parameter]) -> np.ndarray:
    return np.concatenate([p.detach().numpy().astype(np.float64).ravel() for p in params])


def multiplied(factor: float) -> TwoNetworks:
    model = TwoNetworks()
    with torch.no_grad():
        for param in model.parameters():
            param.mul_(factor)
    return model


def test_rho_is_a_part_of_the_length_of_all_weights() -> None:
    model = TwoNetworks()
    length = np.sqrt((entries_of(list(model.parameters())) ** 2).sum())
    # To three digits: half a unit of the third, of a number that begins with 1, is 0.5 %.
    assert auto_rho(model) == pytest.approx(0.001 * length, rel=0.005)


@pytest.mark.parametrize(("scope", "count"), [("global", 1), ("network", 3), ("core", 8)])
def test_perturbations_of_every_scope_have_the_same_length_together(scope: str, count: int) -> None:
    """Two networks of 4 and 3 cores, and a bias."""
    model = TwoNetworks()
    assert auto_rho(model, scope) * count**0.5 == pytest.approx(auto_rho(model), rel=0.01)


def test_alpha_of_das_is_that_which_moves_norms_as_sam_does() -> None:
    model = TwoNetworks()
    assert auto_das_alpha(model, "global") == auto_das_alpha(model, "cores") == auto_rho(model)
    assert auto_das_alpha(model, "network") == auto_rho(model, "network")


def test_alpha_of_bar_is_a_part_of_the_inverse_size_of_an_entry_of_the_cores() -> None:
    model = TwoNetworks()
    rms = np.sqrt((entries_of([*model.a.cores, *model.b.cores]) ** 2).mean())
    assert auto_bar_alpha(model) == pytest.approx(0.01 / rms, rel=0.005)


def test_values_follow_the_scale_of_the_weights() -> None:
    """Powers of ten, which three digits follow exactly."""
    small, large = multiplied(1.0), multiplied(100.0)
    assert auto_rho(large) == pytest.approx(100 * auto_rho(small), rel=1e-15)
    assert auto_bar_alpha(large) == pytest.approx(auto_bar_alpha(small) / 100, rel=1e-15)


def test_a_value_is_as_it_is_printed() -> None:
    value = auto_rho(TwoNetworks())
    assert float(f"{value:g}") == value


def test_frozen_parameters_do_not_count() -> None:
    model, without = TwoNetworks(), TwoNetworks()
    model.bias.requires_grad_(False)
    without.bias = None  # type: ignore[assignment]
    with torch.no_grad():
        model.bias.fill_(1e6)
    assert auto_rho(model) == auto_rho(without)
    for scope in ("network", "core"):
        assert auto_rho(model, scope) == auto_rho(without, scope)


def test_a_model_without_networks_has_a_rho_and_no_alpha_of_bar() -> None:
    model = nn.Linear(3, 2)
    assert auto_rho(model, "core") == auto_rho(model) > 0
    assert auto_bar_alpha(model) == 0.0


def test_weights_of_zero_give_zero() -> None:
    assert auto_rho(multiplied(0.0)) == auto_bar_alpha(multiplied(0.0)) == 0.0
