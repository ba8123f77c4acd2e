import re

import pytest
import torch
from einsum_reference import draw, draw_indices
from torch import nn

import distsam

SPEC = distsam.tucker((5, 4, 3), (2, 3, 2))


def test_cores_are_parameters_named_by_position():
    network = draw(SPEC)
    assert [name for name, _ in network.named_parameters()] == [f"cores.{k}" for k in range(4)]
    assert set(network.state_dict()) == {f"cores.{k}" for k in range(4)}
    assert [tuple(core.shape) for core in network.cores] == list(SPEC.core_shapes)


def test_calling_the_module_gives_the_entries():
    network = draw(SPEC)
    indices = draw_indices(SPEC, 7)
    assert torch.equal(network(indices), network.at(indices))


def test_replaced_parameters_are_the_ones_that_are_used():
    network = draw(SPEC)
    indices = draw_indices(SPEC, 7)
    before = network.at(indices).detach()
    network.cores[0] = nn.Parameter(2 * network.cores[0].detach())
    assert torch.allclose(network.at(indices), 2 * before, rtol=1e-15)
    assert torch.allclose(network.dense()[tuple(indices.T)], 2 * before, rtol=1e-14)


def test_without_gradients_nothing_is_recorded():
    with torch.no_grad():
        assert draw(SPEC).at(draw_indices(SPEC, 3)).grad_fn is None


def test_a_frozen_core_gets_no_gradient_and_the_others_do():
    network = draw(distsam.tt((5, 4, 3), 2))
    network.cores[1].requires_grad_(False)
    network.at(draw_indices(network.spec, 50)).sum().backward()
    assert [core.grad is not None for core in network.cores] == [True, False, True]


def test_load_cores_copies_the_values():
    network, other = draw(SPEC), draw(SPEC, seed=1)
    network.load_cores([core.detach() for core in other.cores])
    assert torch.equal(network.dense(), other.dense())
    assert network.cores[0] is not other.cores[0]


def test_cores_of_another_shape_are_not_loaded():
    network = draw(SPEC)
    before = network.dense().detach()
    with pytest.raises(distsam.InputError, match=r"^cores: have shapes"):
        network.load_cores([torch.ones(2, 3, 2), torch.ones(5, 2), torch.ones(4, 3), torch.ones(4, 2)])
    assert torch.equal(network.dense(), before)


@pytest.mark.parametrize(
    "indices",
    [
        torch.zeros(3, 2, dtype=torch.int64),
        torch.zeros(3, dtype=torch.int64),
        torch.zeros(3, 3),
        torch.zeros(3, 3).int(),
    ],
)
def test_indices_of_another_shape_or_dtype_are_refused(indices):
    with pytest.raises(distsam.InputError, match=re.escape("it must be (B, 3), torch.int64")):
        draw(SPEC).at(indices)


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64])
def test_cores_that_are_not_floating_are_refused(dtype):
    with pytest.raises(distsam.InputError, match="is not floating"):
        distsam.TensorNetwork(SPEC, dtype=dtype)


def test_core_networks_finds_every_network_under_its_path():
    model = nn.ModuleDict({"first": draw(SPEC), "rest": nn.Sequential(nn.Linear(2, 2), draw(distsam.cp((3, 4), 2)))})
    found = distsam.core_networks(model)
    assert [(network.name, len(network.cores)) for network in found] == [("first", 4), ("rest.1", 2)]
    assert found[0].cores[2] is model["first"].cores[2]


def test_a_network_that_is_the_model_is_called_network():
    assert [network.name for network in distsam.core_networks(draw(SPEC))] == ["network"]
    assert distsam.core_networks(nn.Linear(2, 2)) == []


def test_a_parameter_that_is_two_cores_of_a_network_is_refused():
    network = draw(distsam.cp((4, 4), 2))
    network.cores[1] = network.cores[0]
    with pytest.raises(ValueError, match="one parameter as two cores"):
        distsam.core_networks(network)


def test_printing_a_network_says_what_it_is():
    assert "tucker, shape=(5, 4, 3), num_parameters=40" in repr(draw(SPEC))
