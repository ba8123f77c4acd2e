import numpy as np
import pytest
import torch
from einsum_reference import SPECS

import distsam
from distsam.tensornet.initial import draw_cores, log_tensor_norm


@pytest.mark.parametrize("std", [1.0, 0.07, 30.0])
@pytest.mark.parametrize("name", SPECS)
def test_entries_have_the_wanted_root_mean_square_and_equal_core_norms(name, std):
    spec = SPECS[name]
    network = distsam.TensorNetwork(spec, std=std, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    assert float(network.dense().detach().square().mean().sqrt()) == pytest.approx(std, rel=1e-13)
    norms_sq = torch.stack([core.detach().square().sum() for core in network.cores])
    deviation = float((norms_sq - norms_sq.mean()).square().sum())
    assert deviation < 1e-26 * float(norms_sq.mean()) ** 2


def test_unequal_norms_have_the_wanted_ratios_and_the_exact_root_mean_square():
    spec = distsam.tucker((6, 5, 4), (2, 3, 2))
    network = distsam.TensorNetwork(spec, std=0.5, norms=[4.0, 1.0, 2.0, 1.0], dtype=torch.float64)
    norms = [float(core.detach().norm()) for core in network.cores]
    assert np.allclose(np.array(norms) / norms[1], [4.0, 1.0, 2.0, 1.0], rtol=1e-13)
    assert float(network.dense().detach().square().mean().sqrt()) == pytest.approx(0.5, rel=1e-13)


def test_the_common_scale_of_norms_does_not_matter():
    spec = distsam.cp((6, 5, 4), 3)
    one, ten = (
        draw_cores(spec, norms=n, generator=torch.Generator().manual_seed(2)) for n in ([1, 2, 3], [10, 20, 30])
    )
    assert all(torch.allclose(a, b, rtol=1e-13, atol=0) for a, b in zip(one, ten, strict=True))


def test_a_tensor_too_large_to_build_gets_its_root_mean_square_from_the_cores():
    """200^8 entries: ||T|| comes from contracting the network with itself, and must not overflow."""
    spec = distsam.tt((200,) * 8, 5)
    cores = draw_cores(spec, std=1e-3, generator=torch.Generator().manual_seed(0))
    expected = np.log(1e-3) + 4 * np.log(200)
    assert log_tensor_norm(spec, cores) == pytest.approx(expected, rel=1e-13)
    entries = distsam.TensorNetwork(spec, std=1e-3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).at(
        torch.randint(200, (20_000, 8), generator=torch.Generator().manual_seed(1))
    )
    # The entries are heavy-tailed products; a sample's root mean square is within a few per cent.
    assert float(entries.detach().square().mean().sqrt()) == pytest.approx(1e-3, rel=0.15)


def test_a_network_with_a_core_of_zeros_has_norm_zero():
    spec = distsam.cp((3, 4), 2)
    assert log_tensor_norm(spec, [torch.zeros(3, 2), torch.ones(4, 2)]) == -np.inf


def test_the_norm_from_the_cores_is_that_of_the_tensor():
    for spec in SPECS.values():
        network = distsam.TensorNetwork(spec, std=0.3, dtype=torch.float64)
        expected = float(network.dense().detach().norm().log())
        assert log_tensor_norm(spec, [core.detach() * 7 for core in network.cores]) == pytest.approx(
            expected + spec.num_cores * np.log(7), abs=1e-12
        )


def test_the_same_generator_gives_the_same_cores_in_every_dtype_but_for_rounding():
    spec = distsam.tt((4, 3, 2), 2)
    exact, single = (
        distsam.TensorNetwork(spec, dtype=dtype, generator=torch.Generator().manual_seed(3))
        for dtype in (torch.float64, torch.float32)
    )
    # The number, its factor and their product are rounded: (1 + u)^3 with u = 2^-24.
    for a, b in zip(exact.cores, single.cores, strict=True):
        assert ((a - b).abs() <= 3.001 * 2.0**-24 * a.abs()).all()


@pytest.mark.parametrize("std", [0.0, -1.0, float("nan"), float("inf"), "1"])
def test_a_std_that_is_not_positive_is_refused(std):
    with pytest.raises(distsam.InputError, match=r"^std: "):
        distsam.TensorNetwork(distsam.cp((3, 4), 2), std=std)


@pytest.mark.parametrize(("norms", "named"), [([1.0], "2 cores"), ([1.0, 0.0], r"norms\[1\]"), ([-1, 1], r"\[0\]")])
def test_norms_that_fit_no_network_are_refused(norms, named):
    with pytest.raises(distsam.InputError, match=named):
        distsam.TensorNetwork(distsam.cp((3, 4), 2), norms=norms)
