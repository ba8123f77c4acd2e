"""What users do by mistake, or to an optimizer in use: nested perturbations, copies, frozen cores."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from two_networks import network_of

import distsam
from distsam.balance.meter import Gradients
from distsam.optim import GradientAscent, Plain, Sweep, TwoPass


def build(method: str = "sam") -> tuple[distsam.TensorNetwork, torch.optim.Optimizer]:
    model = distsam.TensorNetwork(distsam.cp((4, 5, 6), 2), norms=(1, 2, 3))
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    networks = distsam.core_networks(model)
    if method == "sam":
        return model, distsam.SAM(base, rho=0.1)
    if method == "das":
        return model, distsam.DAS(base, networks, alpha=0.5)
    return model, distsam.BAR(base, networks, alpha=0.5, rule=method)


def backward(model: distsam.TensorNetwork, optimizer: torch.optim.Optimizer) -> Tensor:
    optimizer.zero_grad()
    loss = model.dense().square().sum()
    loss.backward()
    return loss


@pytest.mark.parametrize("does_step", [True, False])
def test_a_second_perturbation_inside_one_is_refused_and_the_weights_come_back(does_step: bool) -> None:
    """The inner one overwrote the only copy of the weights, and both left them perturbed without a word."""
    model, sam = build()
    assert isinstance(sam, distsam.SAM)
    before = [core.detach().clone() for core in model.cores]
    backward(model, sam)

    def misuse() -> None:
        with sam.perturbed():
            backward(model, sam)
            if does_step:
                sam.step(lambda: backward(model, sam))
            with sam.perturbed():
                pass

    with pytest.raises(RuntimeError, match="perturbed already"):
        misuse()
    assert all(torch.equal(core, kept) for core, kept in zip(model.cores, before, strict=True))


@pytest.mark.parametrize("method", ["sam", "das"])
def test_a_copy_of_an_optimizer_with_a_schedule_moves_its_own_weights(method: str) -> None:
    """A schedule puts a `step` into the optimizer; the copy kept it, and moved the original, or nothing."""
    model, optimizer = build(method)
    torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    pickle.dumps(optimizer)
    before = [core.detach().clone() for core in model.cores]
    twin, twin_optimizer = copy.deepcopy((model, optimizer))
    twin_optimizer.step(lambda: backward(twin, twin_optimizer))  # type: ignore[arg-type, return-value]
    assert all(torch.equal(core, kept) for core, kept in zip(model.cores, before, strict=True))
    assert not any(torch.equal(core, kept) for core, kept in zip(twin.cores, before, strict=True))


@pytest.mark.parametrize("method", ["das", "nbar", "obar"])
def test_a_frozen_core_is_not_rescaled(method: str) -> None:
    model, optimizer = build(method)
    model.cores[1].requires_grad_(False)
    before = [core.detach().clone() for core in model.cores]
    optimizer.step(lambda: backward(model, optimizer))  # type: ignore[arg-type, return-value]
    assert [torch.equal(core, kept) for core, kept in zip(model.cores, before, strict=True)] == [False, True, False]


@pytest.mark.parametrize("scope", ["network", "core"])
def test_a_scope_needs_only_the_networks_that_the_optimizer_moves(scope: str) -> None:
    model = torch.nn.ModuleList(distsam.TensorNetwork(distsam.cp((4, 5), 2)) for _ in range(2))
    sam = distsam.SAM(torch.optim.SGD(model[0].parameters(), lr=0.1), rho=0.1, scope=scope, model=model)
    assert [n.cores[0] is model[0].cores[0] for n in sam.networks] == [True]
    sam.step(lambda: backward(model[0], sam))  # type: ignore[arg-type]


def test_maximize_is_refused_at_the_start_and_in_a_group_added_later() -> None:
    """The base went up, epsilon was that of going down, and every published rate had the wrong sign."""
    model, optimizer = build("das")
    with pytest.raises(ValueError, match="maximize=True"):
        distsam.SAM(torch.optim.SGD(model.parameters(), lr=0.1, maximize=True))
    with pytest.raises(ValueError, match="maximize=True"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], "maximize": True})


def test_the_step_of_a_wrapped_optimizer_is_refused() -> None:
    model, das = build("das")
    distsam.SAM(das)
    with pytest.raises(RuntimeError, match="outermost"):
        das.step(lambda: backward(model, das))  # type: ignore[arg-type, return-value]


def test_a_loss_of_many_numbers_is_refused() -> None:
    model, sam = build()
    with pytest.raises(ValueError, match=r"a loss of shape \(2,\)"):
        sam.step(lambda: backward(model, sam).expand(2))  # type: ignore[arg-type, return-value]


def test_complex_parameters_are_refused() -> None:
    param = torch.nn.Parameter(torch.ones(2, dtype=torch.complex64))
    sam = distsam.SAM(torch.optim.SGD([param], lr=0.1))
    param.grad = torch.ones_like(param)
    with pytest.raises(ValueError, match="complex"), sam.perturbed():
        pass


def test_a_sparse_gradient_is_refused() -> None:
    embedding = torch.nn.Embedding(4, 2, sparse=True)
    sam = distsam.SAM(torch.optim.SGD(embedding.parameters(), lr=0.1))
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="sparse=False"), sam.perturbed():
        pass


@pytest.mark.parametrize("method", ["das", "nbar", "obar"])
def test_a_frozen_core_does_not_count_in_the_mean(method: str) -> None:
    """Its zero gradient made every other core one that is above average."""
    networks = []
    for is_frozen in (True, False):
        torch.manual_seed(0)
        model, optimizer = build(method)
        cores = list(model.cores)
        if is_frozen:
            cores[2].requires_grad_(False)
        else:
            optimizer = build_on(method, cores[:2])
        optimizer.step(lambda m=model, o=optimizer: backward(m, o))  # type: ignore[misc]
        networks.append([core.detach() for core in cores[:2]])
    for frozen, left_out in zip(*networks, strict=True):
        torch.testing.assert_close(frozen, left_out, rtol=1e-6, atol=0)


def build_on(method: str, cores: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    base, networks = torch.optim.SGD(cores, lr=0.1), [network_of(cores)]
    if method == "das":
        return distsam.DAS(base, networks, alpha=0.5)
    return distsam.BAR(base, networks, alpha=0.5, rule=method)


@pytest.mark.parametrize("method", ["das", "nbar", "obar"])
def test_a_core_frozen_between_two_steps_no_longer_counts(method: str) -> None:
    model, optimizer = build(method)
    optimizer.step(lambda: backward(model, optimizer))  # type: ignore[arg-type, return-value]
    model.cores[2].requires_grad_(False)
    twin = copy.deepcopy(model)
    anew = build_on(method, list(twin.cores))
    optimizer.step(lambda: backward(model, optimizer))  # type: ignore[arg-type, return-value]
    anew.step(lambda: backward(twin, anew))  # type: ignore[arg-type, return-value]
    assert all(torch.equal(a, b) for a, b in zip(model.cores, twin.cores, strict=True))


@pytest.mark.parametrize("name", ["my.ascent", "optim", "model", "best", ""])
def test_a_name_under_which_state_would_get_lost_is_refused(name: str) -> None:
    """State of an ascent called "my.ascent" was saved and not found again."""
    ascent = GradientAscent(0.1, "global", ())
    ascent.name = name
    with pytest.raises(ValueError, match="call an ascent or rescale by one word"):
        TwoPass(torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1), ascent)


def test_a_scale_that_is_a_whole_number_is_a_number() -> None:
    class Whole(GradientAscent):
        def epsilon(self, sweep: Sweep) -> tuple[float | torch.Tensor, Gradients]:
            return 1, sweep.grads

    weight = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = TwoPass(torch.optim.SGD([weight], lr=0.5), Whole(0.1, "global", ()))

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = weight.square().sum() / 2
        loss.backward()
        return loss

    optimizer.step(closure)
    assert weight.item() == 1.0 - 0.5 * 2.0  # the gradient at w + 1 w


METHODS = ["sam", "das"]


@pytest.mark.parametrize("method", METHODS)
def test_hooks_on_state_dicts_fire(method: str) -> None:
    """They were kept by the wrapper, which has no state of its own, and never called."""
    _, optimizer = build(method)
    seen: list[str] = []
    optimizer.register_state_dict_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_state_dict_post_hook(lambda *_: seen.append("after"))
    optimizer.register_load_state_dict_pre_hook(lambda *_: seen.append("before loading"))
    optimizer.register_load_state_dict_post_hook(lambda *_: seen.append("after loading"))
    optimizer.load_state_dict(optimizer.state_dict())
    assert seen == ["before", "after", "before loading", "after loading"]


@pytest.mark.parametrize("method", METHODS)
def test_the_state_that_dcp_asks_for_before_the_first_step_counts_nothing(method: str) -> None:
    """It takes a step without a closure to have state made, which SAM refused and DAS counted."""
    model, _ = build(method)
    base = torch.optim.Adam(model.parameters(), lr=0.1, weight_decay=0.1)
    optimizer = distsam.SAM(base) if method == "sam" else distsam.DAS(base, distsam.core_networks(model), alpha=0.1)
    before = [p.detach().clone() for p in model.parameters()]
    state = get_optimizer_state_dict(model, optimizer)
    assert len(state["state"]) == len(before)
    assert optimizer.num_steps == 0
    assert all(torch.equal(p, w) for p, w in zip(model.parameters(), before, strict=True))


def test_parameters_that_were_replaced_are_measured() -> None:
    """Where a rank grew, the new parameters were stepped plainly: only their number was looked at."""
    weight = nn.Parameter(torch.ones(3, dtype=torch.float64))
    sam = distsam.SAM(torch.optim.SGD([weight], lr=0.1), rho=0.5)

    def step(parameter: nn.Parameter) -> None:
        def closure() -> Tensor:
            sam.zero_grad()
            loss = parameter.pow(3).sum()
            loss.backward()
            return loss

        sam.step(closure)

    step(weight)
    grown = nn.Parameter(torch.ones(4, dtype=torch.float64))
    sam.param_groups[0]["params"][0] = grown
    step(grown)
    # g = 3 w^2 = 3 each, so w + rho g / |g| = 1 + 0.25, and the step is along 3 * 1.25^2.
    torch.testing.assert_close(grown.detach(), torch.full_like(grown, 1 - 0.1 * 3 * 1.25**2), rtol=1e-14, atol=0)


def test_a_scope_without_networks_is_refused() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="moves no core of a tensor network"):
        distsam.SAM(torch.optim.SGD(model.parameters(), lr=0.1), scope="network", model=model)


@pytest.mark.parametrize("method", ["sam", "das", "plain"])
def test_a_closure_without_backward_is_refused(method: str) -> None:
    """The step did nothing, and said nothing."""
    model, optimizer = build(method) if method != "plain" else build_plain()
    before = [core.detach().clone() for core in model.cores]
    with pytest.raises(distsam.InputError, match="no parameter of the optimizer has a gradient"):
        optimizer.step(lambda: model.dense().square().sum())  # type: ignore[arg-type, return-value]
    assert all(torch.equal(core, kept) for core, kept in zip(model.cores, before, strict=True))


def build_plain() -> tuple[distsam.TensorNetwork, torch.optim.Optimizer]:
    model, _ = build()
    return model, Plain(torch.optim.SGD(model.parameters(), lr=0.1))


def test_a_second_pass_without_backward_is_refused() -> None:
    model, sam = build()
    assert isinstance(sam, distsam.SAM)
    backward(model, sam)
    with sam.perturbed():
        model.dense()
    with pytest.raises(distsam.InputError, match="no parameter of the optimizer has a gradient"):
        sam.step()


def test_a_closure_that_does_not_clear_the_gradients_gives_the_same_step() -> None:
    """The first pass of each step but the first had the gradients of the step before added to its own."""
    twins = [build() for _ in range(2)]
    twins[1][0].load_state_dict(twins[0][0].state_dict())
    for step in range(3):
        for model, sam in twins:
            if model is twins[0][0]:
                sam.step(lambda m=model, s=sam: backward(m, s))  # type: ignore[misc]
                continue

            def closure(model: distsam.TensorNetwork = model) -> Tensor:
                loss = model.dense().square().sum()
                loss.backward()
                return loss

            closure()  # as in a loop of two calls, or where somebody looked at the gradients
            sam.step(closure)  # type: ignore[arg-type]
        assert all(torch.equal(a, b) for a, b in zip(twins[0][0].cores, twins[1][0].cores, strict=True)), step


@pytest.mark.parametrize("set_to_none", [True, False, None])
def test_a_loop_that_does_not_clear_the_gradients_is_warned(set_to_none: bool | None) -> None:
    model, sam = build()
    assert isinstance(sam, distsam.SAM)

    def step() -> None:
        if set_to_none is not None:
            sam.zero_grad(set_to_none=set_to_none)
        model.dense().square().sum().backward()
        with sam.perturbed():
            model.dense().square().sum().backward()
        sam.step()

    step()
    if set_to_none is None:
        with pytest.warns(UserWarning, match="the gradients of the step before are still there"):
            step()
    else:
        step()
        step()


def test_a_gradient_scaler_is_told_what_to_do() -> None:
    """Its first pass was measured scaled, its second unscaled."""
    model, sam = build()
    assert isinstance(sam, distsam.SAM)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(model.dense().square().sum()).backward()
    with sam.perturbed():
        scaler.scale(model.dense().square().sum()).backward()
    with pytest.raises(RuntimeError, match=r"GradScaler.step.*autocast\(dtype=torch.bfloat16\)"):
        scaler.step(sam)


def test_a_coordinator_over_a_model_without_networks_warns() -> None:
    model = nn.Linear(2, 2)
    optimizer = distsam.SAM(torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.warns(UserWarning, match="Linear holds no tensor network, so no core norm"):
        distsam.BalanceCoordinator(model, optimizer)
