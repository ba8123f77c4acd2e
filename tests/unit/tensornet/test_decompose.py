import numpy as np
import pytest
import tensorly
import torch
from einsum_reference import draw
from tensorly.tt_tensor import TTTensor

import distsam
from distsam import TensorNetwork
from distsam.tensornet.decompose import decompose

FORMATS = {
    "cp": distsam.cp((7, 6, 5), 3),
    "tucker": distsam.tucker((7, 6, 5), (2, 3, 2)),
    "tt": distsam.tt((7, 6, 5), [2, 3]),
    "tr": distsam.tr((7, 6, 5), [2, 2, 2]),
}
# Iterations stop where the relative error changes by less than tensorly's tolerance; HOOI and TT-SVD are exact.
EXACT_WITHIN = {"cp": 1e-6, "tucker": 1e-12, "tt": 1e-12, "tr": 1e-4}


def relative_error(network, tensor):
    return float((network.dense().detach() - tensor).norm() / tensor.norm())


@pytest.mark.parametrize("name", FORMATS)
def test_a_start_from_data_recovers_a_tensor_of_its_format_with_equal_core_norms(name):
    # On some tensors an alternating fit needs more steps than it has, or ends elsewhere; on this one none does.
    tensor = draw(FORMATS[name], seed=7).dense().detach()
    network = TensorNetwork.from_dense(tensor, FORMATS[name], dtype=torch.float64)
    assert relative_error(network, tensor) < EXACT_WITHIN[name]
    norms = torch.stack([core.detach().norm() for core in network.cores])
    assert float(norms.max() / norms.min() - 1) < 1e-13


@pytest.mark.parametrize("name", FORMATS)
def test_a_start_from_data_is_the_same_every_time_and_takes_no_random_numbers(name):
    tensor = draw(FORMATS[name]).dense().detach().numpy()
    torch.manual_seed(0)
    first = TensorNetwork.from_dense(tensor, FORMATS[name])
    after = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(1), after)
    second = TensorNetwork.from_dense(tensor, FORMATS[name])
    assert first.cores[0].dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(first.cores, second.cores, strict=True))


@pytest.mark.parametrize("name", ["cp", "tucker"])
def test_missing_entries_are_imputed_by_cp_and_tucker(name):
    tensor = draw(FORMATS[name], seed=7).dense().detach()
    holed = tensor.clone()
    holed[torch.rand(tensor.shape, generator=torch.Generator().manual_seed(0)) < 0.2] = torch.nan
    assert relative_error(TensorNetwork.from_dense(holed, FORMATS[name], dtype=torch.float64), tensor) < 0.01


@pytest.mark.parametrize("name", ["tt", "tr"])
def test_missing_entries_start_at_the_mean_in_trains_and_rings(name):
    tensor = 5 + 0.01 * draw(FORMATS[name]).dense().detach()
    holed = tensor.clone()
    holed[::2, 0] = torch.nan
    network = TensorNetwork.from_dense(holed, FORMATS[name], dtype=torch.float64)
    assert relative_error(network, tensor) < 0.01


@pytest.mark.parametrize("name", FORMATS)
def test_a_way_to_tensorly_and_back_changes_no_bit(name):
    network = draw(FORMATS[name])
    back = TensorNetwork.from_tensorly(network.to_tensorly())
    assert back.spec == network.spec
    assert all(torch.equal(a, b) for a, b in zip(network.cores, back.cores, strict=True))


@pytest.mark.parametrize("name", FORMATS)
def test_tensorly_sees_the_same_tensor(name):
    network = draw(FORMATS[name])
    dense = getattr(tensorly, f"{name}_to_tensor")(network.to_tensorly())
    assert isinstance(dense, np.ndarray)
    assert np.allclose(dense, network.dense().detach().numpy(), rtol=0, atol=1e-12)


def test_the_weights_of_a_cp_object_go_into_its_first_factor():
    rng = np.random.default_rng(0)
    decomposition = tensorly.cp_tensor.CPTensor((np.array([2.0, -3.0]), [rng.normal(size=(n, 2)) for n in (4, 3, 5)]))
    network = TensorNetwork.from_tensorly(decomposition)
    assert np.allclose(network.dense().detach().numpy(), tensorly.cp_to_tensor(decomposition), rtol=0, atol=1e-13)


def test_a_copy_in_bfloat16_becomes_float32():
    network = TensorNetwork(FORMATS["cp"], dtype=torch.bfloat16)
    assert network.to_tensorly().factors[0].dtype == np.float32


def test_the_users_tensorly_backend_stays_and_gives_the_array_type():
    tensorly.set_backend("pytorch")
    try:
        network = draw(FORMATS["tucker"])
        TensorNetwork.from_dense(network.dense(), FORMATS["tucker"])
        assert tensorly.get_backend() == "pytorch"
        decomposition = network.to_tensorly()
        assert isinstance(decomposition.core, torch.Tensor)
        back = TensorNetwork.from_tensorly(decomposition)
        assert all(torch.equal(a, b) for a, b in zip(network.cores, back.cores, strict=True))
    finally:
        tensorly.set_backend("numpy")


EINSUM = distsam.einsum_network("ir,jr->ij", {"i": 3, "j": 4, "r": 2})


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        (
            lambda: TensorNetwork.from_dense(np.ones((3, 4)), EINSUM),
            "spec: is of format 'einsum', which has no decomposition",
        ),
        (lambda: TensorNetwork(EINSUM).to_tensorly(), "spec: is of format 'einsum', which has no tensorly object"),
        (
            lambda: TensorNetwork.from_dense(np.ones((3, 5)), distsam.cp((3, 4), 2)),
            r"\(3, 5\); this network has \(3, 4\)",
        ),
        (lambda: TensorNetwork.from_dense(np.full((3, 4), np.nan), distsam.cp((3, 4), 2)), "missing"),
        (lambda: TensorNetwork.from_dense(np.zeros((3, 4)), distsam.cp((3, 4), 2)), "zeros"),
        (lambda: TensorNetwork.from_dense(np.full((3, 4), np.inf), distsam.cp((3, 4), 2)), "infinite"),
        (lambda: TensorNetwork.from_tensorly(np.ones((3, 4))), "is a ndarray; it must be a CPTensor"),
        (
            lambda: TensorNetwork.from_tensorly(TTTensor([np.ones((1, 2, 5)), np.ones((5, 3, 1))])),
            "bond 'b1' has size 5",
        ),
    ],
)
def test_what_cannot_be_decomposed_or_carried_is_refused(refused, message):
    with pytest.raises(distsam.InputError, match=message):
        refused()


@pytest.mark.parametrize("spec", [distsam.cp((4, 5, 6), 5), distsam.tr((4, 5, 6), 2)], ids=["cp", "tr"])
def test_a_start_takes_any_seed_of_64_bits(spec):
    """numpy's own seeds have 32 bits; a run's may have 63. The CP rank is above a mode: what SVD lacks is drawn."""
    tensor = torch.rand(4, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    starts = [decompose(tensor, spec, seed=seed) for seed in (2**63 - 1, 2**63 - 1, 2**32, 0)]
    assert all(torch.equal(a, b) for a, b in zip(starts[0], starts[1], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(starts[2], starts[3], strict=True))


@pytest.mark.parametrize(
    ("shape", "bond_dim"), [((5, 4), 3), ((4, 5, 6), 3), ((4, 5), 4)], ids=["matrix", "tensor", "full"]
)
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_a_cp_start_of_a_tensor_of_rank_one_is_exact_though_the_bond_is_larger(shape, bond_dim, scale):
    """The normal equations of alternating least squares were singular: a traceback."""
    tensor = torch.full(shape, scale, dtype=torch.float64)
    network = TensorNetwork.from_dense(tensor, distsam.cp(shape, bond_dim), dtype=torch.float64)
    torch.testing.assert_close(network.dense(), tensor, rtol=1e-6, atol=0)
