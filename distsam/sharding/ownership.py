"""Local pieces of parameters, and which rank's piece counts in a sum over the world."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial, Replicate

from distsam.sharding.collectives import rank, world_size


@torch.no_grad()
def local_tensor(tensor: Tensor) -> Tensor:
    """This rank's piece, sharing storage; a plain tensor is its own piece."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()


def owned(params: Sequence[nn.Parameter]) -> list[bool]:
    """For each parameter: does this rank's piece count? Summed over the world each element counts once.

    Plain tensors are taken to be replicated on every rank. A mesh smaller than the world is taken to be one of
    several replicas: the one that holds rank 0 counts.

    Raises:
        ValueError: a parameter is Partial; reduce it first.
    """
    return [_owns(p) for p in params]


def _owns(param: nn.Parameter) -> bool:
    if not isinstance(param, DTensor):
        return rank() == 0
    mesh = param.device_mesh
    coordinate = mesh.get_coordinate()
    if any(isinstance(placement, Partial) for placement in param.placements):
        raise ValueError("a parameter has a Partial placement: reduce it before it is measured")
    if coordinate is None:
        return False
    for placement, position in zip(param.placements, coordinate, strict=True):
        if isinstance(placement, Replicate) and position != 0:
            return False
    return mesh.size() == world_size() or 0 in mesh.mesh.flatten().tolist()


def matching_gradient(param: nn.Parameter) -> Tensor | None:
    """This rank's piece of `param.grad`, placed as the parameter is; None if there is no gradient.

    Collectives: none for gradients placed as their parameter (FSDP2, plain tensors); one redistribution for
        any other DTensor gradient, which is stored back.
    """
    grad = param.grad
    if grad is None:
        return None
    if isinstance(param, DTensor) and isinstance(grad, DTensor) and grad.placements != param.placements:
        grad = param.grad = grad.redistribute(placements=param.placements)
    return local_tensor(grad)
