"""Where the cores start: entries of a given size, and core norms equal or in given ratios."""

from collections.abc import Sequence
from math import exp, inf, isfinite, log, prod

import torch
from torch import Tensor

from distsam.errors import InputError
from distsam.tensornet.contraction import contract, plan_contraction
from distsam.tensornet.spec import NetworkSpec


def draw_cores(
    spec: NetworkSpec,
    *,
    std: float = 1.0,
    norms: Sequence[float] | None = None,
    generator: torch.Generator | None = None,
) -> list[Tensor]:
    """Gaussian cores of equal norms whose tensor has exactly the wanted root mean square.

    E||T||^2 = prod_k s_k / prod_i d_i^(m_i - 1) over all indices i, of size d_i, carried by m_i cores, holds in
    expectation only; one draw scatters. So ||T|| is computed from the cores and all are rescaled alike.

    Args:
        spec: the network; K cores.
        std: root mean square of the entries, sqrt(||T||^2 / number of entries): no mean is taken off.
        norms: K positive numbers, the wanted ratios of the core norms ||G_k||; their common scale is ignored.
        generator: as for torch.randn; its device is where the cores are drawn.

    Returns:
        K float64 tensors on the generator's device (CPU when None).

    Raises:
        InputError: std or a norm is not positive and finite, or there are not K norms.
    """
    _check_positive(std, "init_std")
    ratios = [1.0] * spec.num_cores if norms is None else _checked_norms(spec, norms)
    device = generator.device if generator is not None else torch.device("cpu")
    cores = []
    for shape, ratio in zip(spec.core_shapes, ratios, strict=True):
        core = torch.randn(shape, generator=generator, dtype=torch.float64, device=device)
        cores.append(core * (ratio / torch.linalg.vector_norm(core)))
    return rescale_cores(spec, cores, std)


def rescale_cores(spec: NetworkSpec, cores: Sequence[Tensor], std: float) -> list[Tensor]:
    """All cores times one factor, such that the root mean square of the entries is `std`."""
    log_wanted = log(std) + 0.5 * sum(log(size) for size in spec.shape)
    factor = exp((log_wanted - log_tensor_norm(spec, cores)) / spec.num_cores)
    return [core * factor for core in cores]


def log_tensor_norm(spec: NetworkSpec, cores: Sequence[Tensor]) -> float:
    """log ||T|| from the cores: T is built only where that costs less than contracting the network with itself.

    The logarithm, with every core divided by its norm first, because the product of many norms can leave float64.

    Returns:
        log of the Frobenius norm of T, -inf if it is zero.
    """
    norms = [float(torch.linalg.vector_norm(core.double())) for core in cores]
    if min(norms) == 0:
        return -inf
    # 1 / E||T|| for Gaussian cores of norm 1 is sqrt(prod d^(m-1)): spread over the cores it keeps ||T|| near 1.
    log_spread = _log_expected_shrinkage(spec) / spec.num_cores
    units = [core.double() * exp(log_spread - log(norm)) for core, norm in zip(cores, norms, strict=True)]
    norm_sq = float(_unit_norm_sq(spec, units))
    log_norm_sq = log(norm_sq) if norm_sq > 0 else -inf
    return 0.5 * log_norm_sq - _log_expected_shrinkage(spec) + sum(log(norm) for norm in norms)


def _log_expected_shrinkage(spec: NetworkSpec) -> float:
    carried = [index for core in spec.cores for index in core]
    return 0.5 * sum((carried.count(index) - 1) * log(size) for index, size in spec.sizes)


def _unit_norm_sq(spec: NetworkSpec, cores: Sequence[Tensor]) -> Tensor:
    build = plan_contraction(spec.cores, spec.modes, spec.sizes)
    bonds = set(spec.bonds)
    primed = tuple(tuple(i + "'" if i in bonds else i for i in core) for core in spec.cores)
    sizes = spec.sizes + tuple((i + "'", spec.size(i)) for i in spec.bonds)
    fold = plan_contraction(spec.cores + primed, (), sizes)
    if build.multiply_adds + prod(spec.shape) <= fold.multiply_adds:
        return contract(build, cores).square().sum()
    return contract(fold, [*cores, *cores])


def _checked_norms(spec: NetworkSpec, norms: Sequence[float]) -> list[float]:
    if len(norms) != spec.num_cores:
        raise InputError(
            f"init_norms {list(norms)} has {len(norms)} entries; this network has {spec.num_cores} cores "
            f"({', '.join(spec.core_names)})"
        )
    for k, norm in enumerate(norms):
        _check_positive(norm, f"init_norms[{k}]")
    return [float(norm) for norm in norms]


def _check_positive(value: float, key: str) -> None:
    if not (isinstance(value, int | float) and isfinite(value) and value > 0):
        raise InputError(f"{key} is {value!r}; it must be a positive finite number")
