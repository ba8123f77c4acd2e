"""What a user may give for sizes, numbers and tensors, and what is said of the rest."""

import numpy as np
import pytest
import torch

import distsam
from distsam import InputError, TensorNetwork

CP = distsam.cp((4, 5), 2)


@pytest.mark.parametrize(
    "build",
    [
        lambda: distsam.tucker(np.array([4, 5, 6]), np.array([2, 2, 2])),
        lambda: distsam.tucker(torch.Size((4, 5, 6)), torch.tensor([2, 2, 2])),
        lambda: distsam.tucker([4, 5, 6], (np.int64(2), torch.tensor(2), 2)),
    ],
)
def test_sizes_are_those_of_python_numpy_or_torch(build):
    assert build() == distsam.tucker((4, 5, 6), (2, 2, 2))


@pytest.mark.parametrize(
    "norms", [(1, 2.0), np.array([1.0, 2.0]), torch.tensor([1.0, 2.0]), [np.int64(1), np.float32(2)]]
)
def test_numbers_are_those_of_python_numpy_or_torch(norms):
    given, expected = (
        TensorNetwork(CP, std=std, norms=n, generator=torch.Generator().manual_seed(0))
        for std, n in ((np.float32(0.5), norms), (0.5, [1.0, 2.0]))
    )
    assert all(torch.equal(a, b) for a, b in zip(given.cores, expected.cores, strict=True))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: distsam.cp(5, 2), "shape: is 5; it must be a list"),
        (lambda: distsam.tt("45", 2), "shape: is '45'; it must be a list"),
        (lambda: distsam.cp((4, 5), 2.0), "bond_dim: is 2.0; it must be an integer of at least 1"),
        (lambda: distsam.cp((4, True), 2), r"shape\[1\]: is True; it must be an integer"),
        (
            lambda: distsam.einsum_network("ir,jr->ij", [3, 4]),
            r"sizes: is \[3, 4\]; it must be a mapping from letter",
        ),
        (lambda: distsam.einsum_network(5, {}), "equation: is 5; write one letter per index"),
        (lambda: TensorNetwork((4, 5)), r"spec: is \(4, 5\); it must be a NetworkSpec"),
        (lambda: TensorNetwork(CP, std="a"), "std: is 'a'; it must be a positive finite number"),
        (lambda: TensorNetwork(CP, std=True), "std: is True; it must be a positive finite number"),
        (lambda: TensorNetwork(CP, std=np.float64("nan")), "std: is .*nan.*; it must be a positive finite number"),
        (lambda: TensorNetwork(CP, norms=3.0), "norms: is 3.0; it must be a list"),
        (lambda: TensorNetwork(CP, norms=[1, 0]), r"norms\[1\]: is 0; it must be a positive finite number"),
        (lambda: TensorNetwork(CP, dtype="float32"), "dtype: float32 is not floating"),
        (lambda: TensorNetwork(CP).at([[0, 1]]), r"indices: is a list; it must be a tensor \(B, 2\), torch.int64"),
    ],
)
def test_what_cannot_be_used_is_named(build, message):
    with pytest.raises(InputError, match=message):
        build()


@pytest.mark.parametrize(
    "tensor",
    [torch.ones(4, 5, dtype=torch.complex64), np.ones((4, 5), complex), np.full((4, 5), "a"), np.full((4, 5), None)],
    ids=["torch complex", "numpy complex", "text", "object"],
)
def test_a_start_from_what_is_not_real_is_refused(tensor):
    """A complex tensor lost its imaginary part."""
    with pytest.raises(InputError, match="it must be real numbers"):
        TensorNetwork.from_dense(tensor, CP)


def test_a_start_from_integers_is_one_from_numbers():
    start = TensorNetwork.from_dense(torch.ones(4, 5, dtype=torch.int64), CP, dtype=torch.float64)
    torch.testing.assert_close(start.dense(), torch.ones(4, 5, dtype=torch.float64), rtol=1e-8, atol=0)


@pytest.mark.parametrize("order", [300, 1100, 3000])
def test_a_train_of_thousands_of_cores_starts_with_the_entries_that_were_asked_for(order):
    """Contracted with cores of norm 1 its norm left float64: infinite cores."""
    network = TensorNetwork(
        distsam.tt((2,) * order, 2), std=0.5, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    # log ||T||^2 by a sweep that keeps its own scale.
    log_norm_sq, left_BB = 0.0, torch.ones(1, 1, dtype=torch.float64)
    for k, core in enumerate(network.cores):
        core_LIR = core.detach().reshape(1 if k == 0 else 2, 2, -1)
        left_BB = torch.einsum("ab,aic,bid->cd", left_BB, core_LIR, core_LIR)
        log_norm_sq += float(left_BB.norm().log())
        left_BB = left_BB / left_BB.norm()
    mean_square = log_norm_sq + float(left_BB.log()) - order * np.log(2)
    assert mean_square == pytest.approx(2 * np.log(0.5), abs=1e-9)
