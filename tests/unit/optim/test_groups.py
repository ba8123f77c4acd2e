"""Strengths that live in parameter groups: given there, changed there, and kept apart from keys of others."""

import pytest
import torch
from torch import nn
from two_networks import TwoNetworks, after_one_step, squares

import distsam


def test_groups_hold_rho_and_alpha_where_a_schedule_changes_them() -> None:
    model = TwoNetworks()
    sam = distsam.SAM(
        distsam.DAS(torch.optim.SGD(model.parameters(), lr=1e-3), distsam.core_networks(model), alpha=0.7), rho=0.25
    )
    (group,) = sam.param_groups
    assert (group["rho"], group["alpha"]) == (0.25, 0.7)
    assert (sam.group_key("rho"), sam.group_key("alpha")) == ("rho", "alpha")
    group["rho"] = 0.125
    model.loss().backward()
    before = [p.detach().clone() for p in model.parameters()]
    with sam.perturbed():
        moves = [p.detach() - w for p, w in zip(model.parameters(), before, strict=True)]
    assert float(squares(moves).sum().sqrt()) == pytest.approx(0.125, rel=1e-12)


def test_a_strength_that_a_group_gives_itself_stays_and_one_added_later_gets_the_default() -> None:
    model = TwoNetworks()
    base = torch.optim.SGD([{"params": list(model.a.parameters()), "rho": 0.5}], lr=1e-3)
    sam = distsam.SAM(base, rho=0.1)
    sam.add_param_group({"params": list(model.b.parameters())})
    assert [group["rho"] for group in sam.param_groups] == [0.5, 0.1]
    base.add_param_group({"params": [model.bias]})  # behind SAM's back
    after_one_step(model, sam)
    assert [group["rho"] for group in sam.param_groups] == [0.5, 0.1, 0.1]


def test_each_group_rescales_with_its_own_alpha() -> None:
    alphas, rate = [0.0, 0.2, 0.4], 0.1
    network = distsam.TensorNetwork(distsam.tt((4, 5, 6), 3), norms=(1, 2, 3), dtype=torch.float64)
    groups = [{"params": [c], "alpha": a} for c, a in zip(network.cores, alphas, strict=True)]
    bar = distsam.BAR(torch.optim.SGD(groups, lr=rate), distsam.core_networks(network), alpha=9.0, rule="obar")
    before = [c.detach().clone() for c in network.cores]
    for c in network.cores:
        c.grad = torch.zeros_like(c)
    bar.step()
    ratios = [(c.detach() / b).mean().item() for c, b in zip(network.cores, before, strict=True)]
    assert ratios == pytest.approx([1.0, 1 + 0.2 * rate, 1 - 0.4 * rate], rel=1e-12)


def test_keys_of_the_base_and_of_a_rescale_inside_are_left_to_them() -> None:
    """Adadelta reads a rho in its groups, RMSprop an alpha: SAM's and DAS's would have been theirs, 0.9 and 0.99."""
    network = distsam.TensorNetwork(distsam.cp((4, 5), 2))
    sam = distsam.SAM(torch.optim.Adadelta(network.parameters()), rho=0.1)
    assert (sam.param_groups[0]["rho"], sam.param_groups[0][sam.group_key("rho")]) == (0.9, 0.1)
    networks = distsam.core_networks(network)
    bar = distsam.BAR(torch.optim.RMSprop(network.parameters()), networks, alpha=0.2)
    das = distsam.DAS(bar, networks, alpha=0.1)
    (group,) = das.param_groups
    assert (group["alpha"], group["bar_alpha"], group["das_alpha"]) == (0.99, 0.2, 0.1)
    assert das.group_key("alpha") == "das_alpha"


def test_counters_of_two_rescales_of_one_kind_keep_apart() -> None:
    model = TwoNetworks()
    first, second = distsam.core_networks(model)
    inner = distsam.DAS(torch.optim.SGD(model.parameters(), lr=0.1), [first], alpha=1e9)
    das = distsam.DAS(inner, [second], alpha=0.0)
    after_one_step(model, das)
    assert {k: v for k, v in das.counters().items() if "/" in k} == {"das/clipped": 1, "das2/clipped": 0}
    das.load_counters({**das.counters(), "das2/clipped": 7})
    assert (inner.num_clipped, das.num_clipped) == (1, 7)


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_a_groups_own_value_out_of_range_is_refused(value: float) -> None:
    param = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match=r"rho="):
        distsam.SAM(torch.optim.SGD([{"params": [param], "rho": value}], lr=0.1))
    sam = distsam.SAM(torch.optim.SGD([param], lr=0.1))
    with pytest.raises(ValueError, match=r"rho="):
        sam.add_param_group({"params": [nn.Parameter(torch.ones(2))], "rho": value})


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_clip_norm_out_of_range_is_refused(value: float) -> None:
    sam = distsam.SAM(torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1))
    with pytest.raises(ValueError, match="clip_norm="):
        sam.clip_norm = value


def test_clip_norm_is_that_of_the_outermost_optimizer() -> None:
    network = distsam.TensorNetwork(distsam.cp((4, 5), 2))
    das = distsam.DAS(torch.optim.SGD(network.parameters(), lr=0.1), distsam.core_networks(network), alpha=0.1)
    das.clip_norm = 1.0
    with pytest.raises(ValueError, match="outermost"):
        distsam.SAM(das)
    das.clip_norm = None
    distsam.SAM(das)
    with pytest.raises(ValueError, match="outermost"):
        das.clip_norm = 1.0


def test_hooks_of_a_wrapper_are_called_around_the_base_s_step() -> None:
    param, called = nn.Parameter(torch.ones(2)), []
    sam = distsam.SAM(torch.optim.SGD([param], lr=0.1))
    sam.register_step_pre_hook(lambda *_: called.append("before"))
    sam.register_step_post_hook(lambda *_: called.append("after"))

    def closure() -> torch.Tensor:
        sam.zero_grad()
        loss = param.square().sum()
        loss.backward()
        return loss

    sam.step(closure)
    assert called == ["before", "after"]
