"""A network is found by what it has, not by its class."""

import pytest
import torch
from torch import Tensor, nn

import distsam


class Matrix(nn.Module):
    """A network of a newcomer's own: T = A B, computed by a method of its own."""

    entry_points = ("product",)

    def __init__(self, num_cores: int = 2) -> None:
        super().__init__()
        self.spec = distsam.tt((4, 6), 2)
        self.cores = nn.ParameterList(torch.ones(shape) for shape in self.spec.core_shapes[:num_cores])

    def product(self) -> Tensor:
        left, right = self.cores
        return left @ right


def test_any_module_with_spec_cores_and_entry_points_is_a_network() -> None:
    model = nn.Sequential(nn.Linear(2, 3), Matrix(), distsam.TensorNetwork(distsam.cp((4, 5), 2)))
    first, second = distsam.core_networks(model)
    assert (first.name, second.name) == ("1", "2")
    assert first.spec is model[1].spec
    assert all(a is b for a, b in zip(first.cores, model[1].cores, strict=True))
    assert len(second.spec.core_names) == len(second.cores) == 2


def test_a_network_with_fewer_cores_than_its_spec_is_refused() -> None:
    with pytest.raises(ValueError, match="network 'network' has 1 cores; its spec has 2"):
        distsam.core_networks(Matrix(num_cores=1))


def test_a_module_that_lacks_one_of_the_three_is_no_network() -> None:
    model = Matrix()
    model.spec = "a spec of another kind"  # type: ignore[assignment]
    assert distsam.core_networks(model) == []
