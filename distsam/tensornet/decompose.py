"""Cores from data, by tensorly's decompositions, and the way to and from tensorly's own objects."""

from collections.abc import Callable, Sequence
from math import exp, log, prod
from typing import Any

import numpy as np
import tensorly
import torch
from numpy.random import RandomState
from tensorly.cp_tensor import CPTensor
from tensorly.decomposition import parafac, tensor_ring_als, tensor_train, tucker
from tensorly.tr_tensor import TRTensor
from tensorly.tt_tensor import TTTensor
from tensorly.tucker_tensor import TuckerTensor
from torch import Tensor

from distsam.errors import ArgumentError
from distsam.tensornet import formats
from distsam.tensornet.spec import NetworkSpec

Arrays = list[np.ndarray]
# Smaller sides of unfoldings up to here are decomposed exactly.
LARGE_SIDE = 1024
CP_RIDGE = 1e-10  # beside squared entries of 1 on average


def decompose(tensor: Tensor | np.ndarray, spec: NetworkSpec, *, seed: int = 0) -> list[Tensor]:
    """Cores of equal norms whose tensor is tensorly's decomposition of `tensor`.

    CP and TR by alternating least squares, Tucker by HOOI, TT by successive SVD. NaN marks a missing entry: CP and
    Tucker impute it within their iterations, TT and TR start from the mean of what is there. The user's tensorly
    backend stays as it is.

    Args:
        tensor: of shape `spec.shape`, real.
        spec: of format cp, tucker, tt or tr.
        seed: for what the decompositions draw at random.

    Returns:
        K float64 tensors on CPU.

    Raises:
        ArgumentError: the format has no decomposition, the tensor is not real, the shapes differ, an entry is infinite,
            or all are missing or zero.
    """
    if spec.format not in _DECOMPOSITIONS:
        known = ", ".join(_DECOMPOSITIONS)
        raise ArgumentError("spec", f"is of format {spec.format!r}, which has no decomposition; use one of {known}")
    array = _real_array(tensor)
    if array.shape != spec.shape:
        raise ArgumentError("tensor", f"has shape {array.shape}; this network has {spec.shape}")
    present = ~np.isnan(array)
    if np.isinf(array).any() or not np.any(array[present]):
        raise ArgumentError(
            "tensor", "cannot be decomposed: it is infinite somewhere, or nothing but zeros and missing entries"
        )
    with tensorly.backend_context("numpy", local_threadsafe=True):
        # tensorly's own way to a seed takes 32 bits.
        generator = RandomState(seed if seed < 2**32 else [seed % 2**32, seed >> 32])
        arrays = _DECOMPOSITIONS[spec.format](array, present, spec, generator)
    return equalise_norms([torch.from_numpy(np.ascontiguousarray(core)) for core in arrays])


def _real_array(tensor: Tensor | np.ndarray) -> np.ndarray:
    is_complex = tensor.is_complex() if isinstance(tensor, Tensor) else np.asarray(tensor).dtype.kind not in "fiub"
    if is_complex:
        kind = tensor.dtype if isinstance(tensor, Tensor) else np.asarray(tensor).dtype
        raise ArgumentError("tensor", f"has dtype {kind}; it must be real numbers (float, integer or bool)")
    if isinstance(tensor, Tensor):
        return tensor.detach().cpu().double().numpy()
    array = np.asarray(tensor, np.float64)
    # What a mask hides is missing: under it there may be any number.
    return np.where(np.ma.getmaskarray(tensor), np.nan, array) if isinstance(tensor, np.ma.MaskedArray) else array


def equalise_norms(cores: Sequence[Tensor]) -> list[Tensor]:
    """Each core times its own positive factor, the product of all being 1, so that all norms are equal."""
    norms = [float(torch.linalg.vector_norm(core)) for core in cores]
    if min(norms) == 0:
        raise ArgumentError("tensor", "its decomposition has a core of zeros; the core norms cannot be made equal")
    mean = exp(sum(log(norm) for norm in norms) / len(norms))
    return [core * (mean / norm) for core, norm in zip(cores, norms, strict=True)]


def _decompose_cp(array: np.ndarray, present: np.ndarray, spec: NetworkSpec, generator: RandomState) -> Arrays:
    scale, rank = np.sqrt(np.mean(array[present] ** 2)), spec.size("r")
    weights, factors = parafac(
        np.where(present, array, 0.0) / scale,
        rank,
        init="svd" if rank <= min(spec.shape) else "random",
        random_state=generator,
        mask=_mask(present),
        # Of a tensor of lower rank than asked for the normal equations are singular without it.
        l2_reg=CP_RIDGE,
    )
    return [factors[0] * weights * scale, *factors[1:]]


def _decompose_tucker(array: np.ndarray, present: np.ndarray, spec: NetworkSpec, generator: RandomState) -> Arrays:
    filled = np.where(present, array, 0.0)
    central, factors = tucker(filled, spec.core_shapes[0], random_state=generator, mask=_mask(present))
    return [central, *factors]


def _decompose_tt(array: np.ndarray, present: np.ndarray, spec: NetworkSpec, generator: RandomState) -> Arrays:
    ranks = [1, *(spec.size(bond) for bond in spec.bonds), 1]
    cores = _train(_filled_with_mean(array, present), ranks, generator)
    return [core.reshape(shape) for core, shape in zip(cores, spec.core_shapes, strict=True)]


def _decompose_tt_matrix(array: np.ndarray, present: np.ndarray, spec: NetworkSpec, generator: RandomState) -> Arrays:
    # A train along modes that are each a pair: one of the output, one of the input.
    num = spec.num_cores
    shape = spec.shape
    paired = np.transpose(_filled_with_mean(array, present), [n for k in range(num) for n in (k, num + k)])
    ranks = [1, *(spec.size(bond) for bond in spec.bonds), 1]
    merged = paired.reshape([shape[k] * shape[num + k] for k in range(num)])
    cores = _train(merged, ranks, generator)
    return [core.reshape(shape) for core, shape in zip(cores, spec.core_shapes, strict=True)]


def _train(array: np.ndarray, ranks: Sequence[int], generator: RandomState) -> Arrays:
    """Cores (b_k, I_k, b_{k+1}) by successive SVD; where few values of a large matrix are wanted a randomized one."""
    shape = array.shape
    sides = [min(ranks[k] * size, prod(shape[k + 1 :])) for k, size in enumerate(shape[:-1])]
    is_large = any(side > LARGE_SIDE and 4 * rank <= side for side, rank in zip(sides, ranks[1:], strict=False))
    svd = "randomized_svd" if is_large else "truncated_svd"
    return list(tensor_train(array, ranks, svd=svd, random_state=generator))


def _decompose_tr(array: np.ndarray, present: np.ndarray, spec: NetworkSpec, generator: RandomState) -> Arrays:
    lefts = [shape[0] for shape in spec.core_shapes]
    if lefts[0] == 1:  # a ring with a bond of 1 is a train, for which there is a direct way
        return _train(_filled_with_mean(array, present), [*lefts, 1], generator)
    # Alternating least squares: TR-SVD misses a tensor that is an exact ring by 30-40 %, and wants I_k >= b_k b_{k+1}.
    return list(tensor_ring_als(_filled_with_mean(array, present), [*lefts, lefts[0]], random_state=generator))


_DECOMPOSITIONS: dict[str, Callable[[np.ndarray, np.ndarray, NetworkSpec, RandomState], Arrays]] = {
    "cp": _decompose_cp,
    "tucker": _decompose_tucker,
    "tt": _decompose_tt,
    "tt_matrix": _decompose_tt_matrix,
    "tr": _decompose_tr,
}


def _mask(present: np.ndarray) -> np.ndarray | None:
    return None if present.all() else present.astype(np.float64)


def _filled_with_mean(array: np.ndarray, present: np.ndarray) -> np.ndarray:
    return np.where(present, array, array[present].mean())


def to_tensorly(spec: NetworkSpec, cores: Sequence[Tensor]) -> Any:
    """The tensorly object of a cp, tucker, tt or tr network; copies.

    Returns:
        CPTensor (weights 1), TuckerTensor, TTTensor or TRTensor, its arrays of tensorly's active backend: numpy
        unless the user has set another. bfloat16, which numpy lacks, becomes float32.

    Raises:
        ArgumentError: tensorly has no object for this format.
    """
    arrays = [_to_backend(core) for core in cores]
    if spec.format == "cp":
        return CPTensor((tensorly.ones(spec.size("r"), **tensorly.context(arrays[0])), arrays))
    if spec.format == "tucker":
        return TuckerTensor((arrays[0], arrays[1:]))
    if spec.format == "tt":
        first, last = arrays[0], arrays[-1]
        ends = tensorly.reshape(first, (1, *first.shape)), tensorly.reshape(last, (*last.shape, 1))
        return TTTensor([ends[0], *arrays[1:-1], ends[1]])
    if spec.format == "tr":
        return TRTensor(arrays)
    known = ", ".join(_DECOMPOSITIONS)
    raise ArgumentError("spec", f"is of format {spec.format!r}, which has no tensorly object; use one of {known}")


def _to_backend(core: Tensor) -> Any:
    core = core.detach().cpu()
    return tensorly.tensor((core.float() if core.dtype == torch.bfloat16 else core).numpy().copy())


def from_tensorly(decomposition: Any) -> tuple[NetworkSpec, list[Tensor]]:
    """Spec and cores of a CPTensor (its weights go into the first factor), TuckerTensor, TTTensor or TRTensor.

    The cores are copied as they are: their norms are not made equal.

    Raises:
        ArgumentError: it is none of the four, or its ranks are larger than its shape allows.
    """
    if isinstance(decomposition, CPTensor):
        weights, factors = decomposition
        cores = [_to_torch(factor) for factor in factors]
        if weights is not None:
            cores[0] = cores[0] * _to_torch(weights)
        return formats.cp([len(core) for core in cores], cores[0].shape[1]), cores
    if isinstance(decomposition, TuckerTensor):
        central, factors = decomposition
        cores = [_to_torch(factor) for factor in (central, *factors)]
        return formats.tucker([len(core) for core in cores[1:]], list(cores[0].shape)), cores
    if isinstance(decomposition, TTTensor | TRTensor):
        cores = [_to_torch(core) for core in decomposition.factors]
        shape, lefts = [core.shape[1] for core in cores], [core.shape[0] for core in cores]
        if isinstance(decomposition, TRTensor):
            return formats.tr(shape, lefts), cores
        return formats.tt(shape, lefts[1:]), [cores[0].squeeze(0), *cores[1:-1], cores[-1].squeeze(-1)]
    kind = type(decomposition).__name__
    raise ArgumentError("decomposition", f"is a {kind}; it must be a CPTensor, TuckerTensor, TTTensor or TRTensor")


def _to_torch(array: Any) -> Tensor:
    return array.detach().clone() if isinstance(array, Tensor) else torch.from_numpy(np.array(array))
