from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import distsam
from distsam.errors import ArgumentError
from distsam.tensornet import TensorNetwork, core_networks, deferred_draws
from distsam.tensornet.adapters import TensorizedAdapter
from distsam.tensornet.tensorize import tensorize

SPEC = distsam.tt((6, 5, 4), 3)


class Redrawn(nn.Module):
    """Draws its networks twice, as models do that have rules of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.network = TensorNetwork(SPEC)
        self.network.draw(std=0.3, norms=[1, 2, 3])
        self.layer = distsam.TensorizedLinear(12, 18, rank=3)
        self.layer.reset_parameters()


def adapted() -> nn.Module:
    return TensorizedAdapter(nn.Linear(12, 18), format="tt", rank=2)


def tensorized(*, fit: bool) -> nn.Module:
    model = nn.Sequential(nn.Linear(12, 18))
    tensorize(model, {"0": {"rank": 3}}, fit=fit)
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "network": lambda: TensorNetwork(SPEC, std=0.1, norms=[1, 2, 3], dtype=torch.float64),
    "bfloat16": lambda: TensorNetwork(SPEC, dtype=torch.bfloat16),
    "linear": lambda: distsam.TensorizedLinear(12, 18, rank=3),
    "embedding": lambda: distsam.TensorizedEmbedding(30, 12, rank=3),
    "convolution": lambda: distsam.TensorizedConv2d(4, 6, 3, rank=3),
    "mixture": lambda: nn.Sequential(nn.Linear(4, 12), distsam.TensorizedLinear(12, 18, rank=3), nn.BatchNorm1d(18)),
    "redrawn": Redrawn,
    "adapter": adapted,
    "tensorized": lambda: tensorized(fit=True),
    "tensorized, random": lambda: tensorized(fit=False),
}


def networks_of(model: nn.Module) -> list[TensorNetwork]:
    return [module for module in model.modules() if isinstance(module, TensorNetwork)]


def made(make: Callable[[], Any], *, deferred: bool) -> tuple[Any, torch.Tensor]:
    """What `make` gives, and the numbers that torch's generator would give next."""
    torch.manual_seed(11)
    if deferred:
        with deferred_draws():
            model = make()
    else:
        model = make()
    return model, torch.rand(4)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_drawn_later_is_bit_for_bit_the_one_drawn_at_once(name: str):
    (now, after_now), (later, after_later) = (made(MODELS[name], deferred=deferred) for deferred in (False, True))
    assert torch.equal(after_now, after_later)
    for network in networks_of(later):
        network.draw_deferred()
    ours, wanted = later.state_dict(), now.state_dict()
    assert list(ours) == list(wanted)
    assert all(torch.equal(ours[key], wanted[key]) and ours[key].dtype == wanted[key].dtype for key in wanted)
    assert [n.start for n in networks_of(later)] == [n.start for n in networks_of(now)]
    assert all(param.requires_grad for network in core_networks(later) for param in network.cores)


@pytest.mark.parametrize("name", ["network", "bfloat16", "linear", "embedding", "convolution", "mixture", "redrawn"])
def test_only_cores_are_put_off(name: str):
    model, _ = made(MODELS[name], deferred=True)
    cores = {id(core) for network in core_networks(model) for core in network.cores}
    assert all(param.is_meta == (id(param) in cores) for param in model.parameters())
    assert not any(buffer.is_meta for buffer in model.buffers())
    assert all(network.is_deferred for network in networks_of(model))


@pytest.mark.parametrize("name", ["adapter", "tensorized", "tensorized, random"])
def test_what_does_not_start_at_random_or_tells_its_norms_is_there_at_once(name: str):
    model, _ = made(MODELS[name], deferred=True)
    assert not any(param.is_meta for param in model.parameters())
    assert not any(network.is_deferred for network in networks_of(model))


def test_the_pieces_of_a_deferred_network_make_the_one_drawn_at_once():
    (now, _), (later, _) = (made(lambda: TensorNetwork(SPEC, std=0.2), deferred=deferred) for deferred in (False, True))
    start = later.start
    halves, norms_sq = [], []
    for k, shape in enumerate(SPEC.core_shapes):
        sizes = (shape[0] // 2, shape[0] - shape[0] // 2)
        pieces = [torch.empty(size, *shape[1:]) for size in sizes]
        firsts = [(first,) + (0,) * (len(shape) - 1) for first in (0, sizes[0])]
        sums = [start.fill_(k, piece, first) for piece, first in zip(pieces, firsts, strict=True)]
        halves.append(pieces)
        norms_sq.append(float(sum(sums)))
    for core, pieces, factor in zip(now.cores, halves, start.factors(norms_sq), strict=True):
        assert torch.equal(torch.cat([piece.mul_(factor) for piece in pieces]), core)


def test_a_network_from_data_is_there_at_once_and_has_no_start():
    tensor = TensorNetwork(SPEC, dtype=torch.float64).dense().detach()
    with deferred_draws():
        network = TensorNetwork.from_dense(tensor, SPEC, dtype=torch.float64)
        back = TensorNetwork.from_tensorly(network.to_tensorly())
    for held in (network, back):
        assert held.start is None
        assert torch.equal(held.dense(), network.dense())


def test_cores_that_are_loaded_end_the_start():
    network = TensorNetwork(SPEC, generator=torch.Generator().manual_seed(2))
    assert network.start is not None
    network.load_cores([core.detach() for core in network.cores])
    assert network.start is None


def test_a_deferred_network_can_be_made_empty_and_drawn_anew():
    later, _ = made(lambda: distsam.TensorizedLinear(12, 18, rank=3), deferred=True)
    later.to_empty(device="cpu").reset_parameters(torch.Generator().manual_seed(5))
    wanted = distsam.TensorizedLinear(12, 18, rank=3, generator=torch.Generator().manual_seed(5))
    assert all(torch.equal(a, b) for a, b in zip(later.parameters(), wanted.parameters(), strict=True))


def test_a_network_that_is_drawn_stays_as_it_is():
    network = TensorNetwork(SPEC)
    before = list(network.cores)
    network.draw_deferred("meta")
    assert all(core is old and not core.is_meta for core, old in zip(network.cores, before, strict=True))


def test_a_network_that_was_made_before_is_drawn_at_once_inside():
    network = TensorNetwork(SPEC)
    with deferred_draws():
        network.draw(generator=torch.Generator().manual_seed(5))
    wanted = TensorNetwork(SPEC, generator=torch.Generator().manual_seed(5))
    assert all(torch.equal(a, b) for a, b in zip(network.cores, wanted.cores, strict=True))


def test_a_network_asked_for_on_the_meta_device_is_of_no_start_inside_as_outside():
    def make() -> TensorNetwork:
        return TensorNetwork(SPEC, device="meta")

    (now, after_now), (later, after_later) = (made(make, deferred=deferred) for deferred in (False, True))
    assert torch.equal(after_now, after_later)
    assert now.start is later.start is None
    assert not later.is_deferred
    with torch.device("meta"), deferred_draws():
        assert not TensorNetwork(SPEC).is_deferred


def test_draws_are_at_once_again_after_an_error_inside():
    with pytest.raises(RuntimeError, match="inside"), deferred_draws():
        raise RuntimeError("inside")
    assert not TensorNetwork(SPEC).is_deferred


def test_a_deferred_start_that_the_dtype_cannot_hold_is_refused_when_it_is_drawn():
    with deferred_draws():
        network = TensorNetwork(SPEC, std=1e30, dtype=torch.float16)
    with pytest.raises(ArgumentError, match=r"^std: 1e\+30 gives a core core_0 that torch.float16 cannot hold"):
        network.draw_deferred()


def test_a_mistake_is_told_when_the_network_is_made():
    with deferred_draws(), pytest.raises(ArgumentError, match=r"^std: "):
        TensorNetwork(SPEC, std=-1.0)
