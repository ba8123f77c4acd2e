"""Where the cores start: entries of a given size, and core norms equal or in given ratios."""

from collections import Counter
from collections.abc import Sequence
from math import exp, inf, isfinite, log

import torch
from torch import Tensor

from distsam.errors import ArgumentError
from distsam.tensornet.arguments import checked_list, checked_positive
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
    expectation only; one draw scatters. So ||T|| is computed from the cores, and all are multiplied by one factor.

    Args:
        spec: the network; K cores.
        std: root mean square of the entries, sqrt(||T||^2 / number of entries): no mean is taken off.
        norms: K positive numbers, the wanted ratios of the core norms ||G_k||; their common scale is ignored.
        generator: as for torch.randn; its device is where the cores are drawn.

    Returns:
        K float64 tensors on the generator's device (CPU when None).

    Raises:
        ArgumentError: std or a norm is not positive and finite, or there are not K norms.
    """
    std = checked_positive(std, "std")
    ratios = [1.0] * spec.num_cores if norms is None else _checked_norms(spec, norms)
    device = generator.device if generator is not None else torch.device("cpu")
    cores = []
    for shape, ratio in zip(spec.core_shapes, ratios, strict=True):
        core = torch.randn(shape, generator=generator, dtype=torch.float64, device=device)
        cores.append(core * (ratio / torch.linalg.vector_norm(core)))
    return rescale_cores(spec, cores, std)


def rescale_cores(spec: NetworkSpec, cores: Sequence[Tensor], std: float) -> list[Tensor]:
    """All cores times one factor, such that the root mean square of the entries is `std`."""
    log_wanted, log_norm = log(std) + 0.5 * sum(log(size) for size in spec.shape), log_tensor_norm(spec, cores)
    if not isfinite(log_norm):
        raise ArgumentError(
            "std", f"{std} cannot be met: the norm of the tensor of these {spec.num_cores} cores leaves float64"
        )
    factor = exp((log_wanted - log_norm) / spec.num_cores)
    return [core * factor for core in cores]


def log_tensor_norm(spec: NetworkSpec, cores: Sequence[Tensor]) -> float:
    """log ||T||, -inf if T is zero or leaves float64, by contracting the network with itself: T is never built.

    The logarithm, because the product of many core norms can leave float64.
    """
    norms = [float(torch.linalg.vector_norm(core.double())) for core in cores]
    if min(norms) == 0:
        return -inf
    # Each scaled so that ||T|| is about 1: of norm 1 alone, a thousand of them would leave float64.
    log_scale = _log_expected_norm(spec) / spec.num_cores
    units = [core.double() / (norm * exp(log_scale)) for core, norm in zip(cores, norms, strict=True)]
    bonds = set(spec.bonds)
    second_copy = [tuple(i + "'" if i in bonds else i for i in core) for core in spec.cores]
    # Each core beside its copy: along the chain no more than a bond of each is open.
    operands = tuple(core for pair in zip(spec.cores, second_copy, strict=True) for core in pair)
    sizes = spec.sizes + tuple((bond + "'", spec.size(bond)) for bond in spec.bonds)
    norm_sq = float(contract(plan_contraction(operands, (), sizes), [unit for unit in units for _ in range(2)]))
    log_units = 0.5 * log(norm_sq) if 0 < norm_sq < inf else -inf
    return log_units + spec.num_cores * log_scale + sum(log(norm) for norm in norms)


def _log_expected_norm(spec: NetworkSpec) -> float:
    """log of the root of E||T||^2 over Gaussian cores of norm 1."""
    carriers = Counter(index for core in spec.cores for index in core)
    return -0.5 * sum((count - 1) * log(spec.size(index)) for index, count in carriers.items())


def _checked_norms(spec: NetworkSpec, norms: Sequence[float]) -> list[float]:
    given = checked_list(norms, "norms")
    if len(given) != spec.num_cores:
        names = ", ".join(spec.core_names)
        raise ArgumentError(
            "norms", f"{given} has {len(given)} numbers; the network has {spec.num_cores} cores ({names})"
        )
    return [checked_positive(norm, f"norms[{k}]") for k, norm in enumerate(given)]
