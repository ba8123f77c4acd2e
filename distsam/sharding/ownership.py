"""Local pieces of parameters, and which rank's piece counts in a sum over the world."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial, Replicate

from distsam.sharding.collectives import rank, world_size


def local_tensor(tensor: Tensor) -> Tensor:
    """This rank's piece as it is now, sharing storage, for use under no_grad; a plain tensor is its own piece.

    Not to_local(): it makes a new view of a parameter at every call, as slow as copying a small core.
    """
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor


class LocalPieces:
    """This rank's pieces of a fixed list of parameters, looked up at each call: their storage may be exchanged.

    Args:
        params: P parameters, sharded in any way, the same list on every rank.

    Raises:
        ValueError: a parameter is Partial, or lives on a mesh without rank 0 (raised there).
    """

    def __init__(self, params: Sequence[nn.Parameter]) -> None:
        self.params = tuple(params)
        # What is a DTensor, and placed how, never changes; asking each one at every step is what would take time.
        self._sharded = [(i, p, p.placements) for i, p in enumerate(params) if isinstance(p, DTensor)]
        self.owned = [_owns(p) for p in params]

    def weights(self) -> list[Tensor]:
        """P pieces, sharing storage, for use under no_grad."""
        pieces: list[Tensor] = list(self.params)
        for i, param, _ in self._sharded:
            pieces[i] = param._local_tensor
        return pieces

    def gradients(self) -> list[Tensor | None]:
        """P pieces of `.grad`, each placed as its parameter is; None where there is no gradient.

        Collectives: none for gradients placed as their parameter (FSDP2, plain tensors); one redistribution for
            any other DTensor gradient, which is stored back.
        """
        pieces = [p.grad for p in self.params]
        for i, param, placements in self._sharded:
            grad = pieces[i]
            if isinstance(grad, DTensor):
                if grad.placements != placements:
                    grad = param.grad = grad.redistribute(placements=placements)
                pieces[i] = grad._local_tensor
        return pieces


def _owns(param: nn.Parameter) -> bool:
    """Does this rank's piece count? Summed over the world each element counts once.

    Plain tensors are taken to be replicated on every rank. A mesh smaller than the world is taken to be one of
    several replicas: the one that holds rank 0 counts.
    """
    if not isinstance(param, DTensor):
        return rank() == 0
    mesh = param.device_mesh
    coordinate = mesh.get_coordinate()
    if any(isinstance(placement, Partial) for placement in param.placements):
        raise ValueError("a parameter has a Partial placement: reduce it before it is measured")
    if coordinate is None:
        if rank() == 0:
            raise ValueError("a parameter lives on a mesh without rank 0: every parameter must have a copy there")
        return False
    for placement, position in zip(param.placements, coordinate, strict=True):
        if isinstance(placement, Replicate) and position != 0:
            return False
    return mesh.size() == world_size() or 0 in mesh.mesh.flatten().tolist()
