"""This rank's piece of a tensor, and the placed tensor around a piece."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def local_tensor(tensor: Tensor) -> Tensor:
    """This rank's piece as it is now, sharing storage, for use under no_grad; a plain tensor is its own piece.

    Not to_local(): it makes a new view of a parameter at every call, as slow as copying a small core.
    """
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor


def piece_of(tensor: Tensor) -> Tensor:
    """This rank's piece, differentiable: its gradient is that of the piece, complete, and placed as the tensor is.

    Not to_local(), which takes the pieces of all ranks for equal ones.
    """
    return _Piece.apply(tensor) if isinstance(tensor, DTensor) else tensor


class _Piece(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: DTensor) -> Tensor:
        ctx.mesh, ctx.placements = tensor.device_mesh, tensor.placements
        ctx.shape, ctx.stride = tensor.shape, tensor.stride()
        local = tensor._local_tensor
        return local.view_as(local)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> DTensor:
        # Contiguous, or autograd would copy it into a gradient of its own making, with pieces of equal length.
        return DTensor.from_local(
            grad.contiguous(), ctx.mesh, ctx.placements, run_check=False, shape=ctx.shape, stride=ctx.stride
        )


def is_sharded(tensor: Tensor) -> bool:
    """True for a DTensor, whatever its placements."""
    return isinstance(tensor, DTensor)


def placed_like(param: nn.Parameter, local: Tensor) -> Tensor:
    """The tensor, of the shape and placements of `param`, whose piece on this rank is `local`."""
    if not isinstance(param, DTensor):
        return local
    return DTensor.from_local(
        local, param.device_mesh, param.placements, run_check=False, shape=param.shape, stride=param.stride()
    )
