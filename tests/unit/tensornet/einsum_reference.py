"""The explicit einsum of all cores, by numpy in float64: what every evaluation is held against."""

import string
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

import distsam

# A sum of n products of K factors in float64 is off by at most (n + K) 2^-53 times the sum of the absolute products
# (the natural scale, below). The tests have n + K < 1,000, hence 1.1e-13; gradients sum over a batch too.
RELATIVE = 1e-12

SPECS = {
    "cp": distsam.cp((5, 4, 3), 3),
    "cp order 2": distsam.cp((5, 4), 2),
    "tucker": distsam.tucker((5, 4, 3), (2, 3, 2)),
    "tt": distsam.tt((5, 4, 3, 2), [2, 4, 2]),
    "tr": distsam.tr((5, 4, 3), [2, 3, 2]),
    "tr order 2": distsam.tr((5, 6), [2, 2]),
    "tr order 6": distsam.tr((2, 3, 2, 3, 2, 2), 2),
    "matrix product": distsam.einsum_network("ir,rj->ji", {"i": 4, "j": 5, "r": 3}),
    "one core": distsam.einsum_network("ij->ji", {"i": 4, "j": 5}),
    "mode of two cores": distsam.einsum_network("ir,jr,is->ij", {"i": 4, "j": 5, "r": 3, "s": 1}),
    "triangle, two modes a core": distsam.einsum_network(
        "abx,bcy,xyd->acd", {"a": 3, "b": 2, "c": 4, "x": 2, "y": 2, "d": 3}
    ),
}


def reference(
    spec: distsam.NetworkSpec, cores: Sequence[np.ndarray], upstream: np.ndarray | None = None, core: int = -1
):
    """T, or with `upstream` = dL/dT the gradient dL/dG_core."""
    letter = dict(zip(dict(spec.sizes), string.ascii_letters, strict=False))
    word = ["".join(letter[i] for i in indices) for indices in (*spec.cores, spec.modes)]
    if upstream is None:
        return np.einsum(f"{','.join(word[:-1])}->{word[-1]}", *cores)
    others = [k for k in range(spec.num_cores) if k != core]
    terms = ",".join([word[k] for k in others] + [word[-1]])
    # An index of this core alone does not occur among the others: ones bring it in.
    lone = "".join(dict.fromkeys(i for i in word[core] if i not in terms))
    ones = np.ones([spec.size(i) for i in spec.cores[core] if letter[i] in lone])
    return np.einsum(f"{terms},{lone}->{word[core]}", *(cores[k] for k in others), upstream, ones)


def draw(spec: distsam.NetworkSpec, seed: int = 0) -> distsam.TensorNetwork:
    return distsam.TensorNetwork(spec, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def draw_indices(spec: distsam.NetworkSpec, batch_size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randint(size, (batch_size,), generator=generator) for size in spec.shape], 1)


def arrays(network: distsam.TensorNetwork) -> list[np.ndarray]:
    return [core.detach().numpy() for core in network.cores]


def assert_matches(found: Tensor, expected: np.ndarray, scale: np.ndarray) -> None:
    assert tuple(found.shape) == expected.shape
    difference = np.abs(found.detach().numpy() - expected)
    assert np.all(difference <= RELATIVE * scale.max(initial=0.0)), difference.max()


def assert_gradients_match(network: distsam.TensorNetwork, upstream: np.ndarray) -> None:
    """The .grad of every core against the einsum of the others with dL/dT."""
    cores = arrays(network)
    for k, core in enumerate(network.cores):
        expected = reference(network.spec, cores, upstream, k)
        scale = reference(network.spec, [np.abs(c) for c in cores], np.abs(upstream), k)
        assert core.grad is not None
        assert_matches(core.grad, expected, scale)
