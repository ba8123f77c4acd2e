"""What the core norms say: the norm deviation, its companions, and the laws of its change.

Legend, as in arXiv:2508.10435: s_k = ||G_k||^2 squared norm of core k; g_k its gradient; gamma_k = ||g_k||^2;
epsilon_k the perturbation of core k (SAM: rho u g_k); g~_k the gradient at the perturbed weights; K cores; Q the
norm deviation. Every function takes K numbers of ONE network and works in float64.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

Numbers = Tensor | Sequence[float]


def norm_deviation(core_norms_sq: Numbers) -> Tensor:
    """Q = sum over k of (s_k - mean s)^2; 0 means that all cores have equal norms.

    Args:
        core_norms_sq: (K,) squared Frobenius norms s_k, in squared parameter units.

    Returns:
        () float64, in (parameter unit)^4. A sum: there is no 1/K in front.

    Source: arXiv:2508.10435, Definition 1.
    """
    return _spread(core_norms_sq).square().sum()


def relative_deviation(core_norms_sq: Numbers) -> Tensor:
    """Q / (mean s)^2: the norm deviation without the scale of the tensor; NaN if every core is 0."""
    return norm_deviation(core_norms_sq) / _float64(core_norms_sq).mean().square()


def max_over_min(core_norms_sq: Numbers) -> Tensor:
    """max s_k / min s_k: how much heavier the heaviest core is than the lightest; infinite if a core is 0."""
    s = _float64(core_norms_sq)
    return s.max() / s.min()


def covariance(x: Numbers, y: Numbers) -> Tensor:
    """Population covariance over the cores, (1/K) sum (x_k - mean x)(y_k - mean y)."""
    return (_spread(x) * _spread(y)).mean()


def deviation_rate(core_norms_sq: Numbers, drive: Numbers) -> Tensor:
    """dQ/dt = 4 K Cov_k(s_k, drive_k): what moves the cores apart, by whatever drives them.

    Up to a part that is the same for every core, ds_k/dt = 2 drive_k. The drives of the methods, which add:
        SAM, exact for every rho and loss: <epsilon_k, g~_k>        first order in rho: rho u gamma_k
        DAS, nBAR, oBAR: lambda_k s_k / eta, lambda_k the relative change of core k in a step of length eta

    Args:
        core_norms_sq: (K,) s_k.
        drive: (K,) drive_k, in squared parameter units per unit of (learning rate x steps).

    Returns:
        () float64, in (parameter unit)^4 per unit of (learning rate x steps).

    Source: arXiv:2508.10435, Theorem 3, is the first-order case 4 rho u K Cov(s_k, gamma_k); the exact law
        follows from ds_k = -2<G_k, g~_k> dt, where <G_k + epsilon_k, g~_k> is the same for every k (each core
        enters the network linearly). It needs a network without repeated cores, plain gradient flow and no decay.
    """
    s = _float64(core_norms_sq)
    return 4 * s.numel() * covariance(s, drive)


def _float64(x: Numbers) -> Tensor:
    if isinstance(x, Tensor) and x.dtype is torch.float64 and not x.requires_grad:
        return x  # as it is mostly: rows of many networks ask thousands of times
    return torch.as_tensor(x, dtype=torch.float64).detach()


def _spread(x: Numbers) -> Tensor:
    values = _float64(x)
    return values - values.mean()
