"""How much weight decay a network needs on these entries, by one short fit along falling decays."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from distsam.tensornet import NetworkSpec, TensorNetwork
from distsam.tensornet.initial import draw_cores

# Decay times the number of entries; see `choose_decay`.
FIRST, LAST, FACTOR = 16.0, 0.03, 2.0
STEPS = 100
PATIENCE = 6
# The strongest decay within so much of the least squared error is taken: the path fits less than a training.
NEARLY = 0.02
# Part of a fresh start that is added between two decays.
KICK = 0.3
# With few values a part that is kept apart says little: several are, one after the other.
FEW_VALUES, FOLDS = 10_000, 3
SHARE_APART = 0.1
LARGEST_BATCH = 20_000


def choose_decay(spec: NetworkSpec, indices: np.ndarray, values: np.ndarray, lr: float, seed: int) -> float:
    """The weight decay (L2 in the gradient, for the mean of the squared errors) that predicts best what is kept apart.

    Maximum a posteriori with noise of variance v and cores of variance t has a decay of 2 v / (t N): so what is
    looked for is the decay times N, which depends on the noise alone. One fit goes through FIRST, FIRST / FACTOR, ...
    with STEPS steps of Adam each, every one from where the one before has ended, and ends when the error on the part
    that is kept apart has not fallen for PATIENCE of them: no more than a short training.

    Args:
        spec: the network.
        indices: (N, order) of the training entries.
        values: (N,) of them, of mean 0 and standard deviation 1.
        lr: of Adam.
        seed: of the start, of the part that is kept apart and of the batches.

    Returns:
        The decay for N entries.

    Source: the path of decays, each from the solution before, is that of Mazumder, Hastie, Tibshirani, Spectral
    Regularization Algorithms for Learning Large Incomplete Matrices, JMLR 11 (2010), there for the nuclear norm.
    """
    num_folds = FOLDS if len(values) < FEW_VALUES else 1
    paths = [_path(spec, indices, values, lr, seed, fold) for fold in range(num_folds)]
    errors: list[float] = []
    for of_folds in zip(*paths, strict=True):
        errors.append(sum(of_folds) / num_folds)
        if len(errors) - 1 - errors.index(min(errors)) >= PATIENCE:
            break
    chosen = next(k for k, error in enumerate(errors) if error <= (1 + NEARLY) * min(errors))
    # Two digits are more than is known.
    return float(f"{FIRST / FACTOR**chosen / len(values):.2g}")


def _path(
    spec: NetworkSpec, indices: np.ndarray, values: np.ndarray, lr: float, seed: int, fold: int
) -> Iterator[float]:
    """The mean squared error on the part apart, after each decay."""
    order = np.random.default_rng(seed).permutation(len(values))
    size = max(1, round(SHARE_APART * len(values)))
    apart, rest = np.split(np.roll(order, -fold * size), [size])
    held = torch.from_numpy(indices[apart]), torch.from_numpy(values[apart]).float()
    fitted = torch.from_numpy(indices[rest]), torch.from_numpy(values[rest]).float()
    generator = torch.Generator().manual_seed(seed)
    network = TensorNetwork(spec, generator=generator, dtype=torch.float32)
    adam = torch.optim.Adam(network.parameters(), lr=lr)
    times_n = FIRST
    while times_n >= LAST:
        adam.param_groups[0]["weight_decay"] = times_n / max(1, len(rest))
        for _ in range(STEPS):
            adam.zero_grad()
            _error(network, *_batch(*fitted, generator)).backward()
            adam.step()
        with torch.no_grad():
            error = float(_error(network, *held))
            # What a strong decay has brought to zero has no gradient left to come back by.
            for core, fresh in zip(network.cores, draw_cores(spec, generator=generator), strict=True):
                core.add_(KICK * fresh)
        yield error  # outside: what a generator is inside of when it yields, its caller is in too
        times_n /= FACTOR


def _batch(indices: Tensor, values: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    if len(values) <= LARGEST_BATCH:
        return indices, values
    taken = torch.randint(len(values), (LARGEST_BATCH,), generator=generator)
    return indices[taken], values[taken]


def _error(network: TensorNetwork, indices: Tensor, values: Tensor) -> Tensor:
    return (network(indices) - values).square().mean()
