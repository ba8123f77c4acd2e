"""Pieces of unequal ranges in a checkpoint: torch takes a DTensor's pieces for equal ones."""

from collections.abc import Mapping

from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor._shards_wrapper import LocalShardsWrapper
from torch.utils.weak import WeakIdKeyDictionary

from distsam.sharding.plan import chunk

# Mesh -> which of its dims cuts by ranges, and where these begin, with the number of rows at the end.
_RANGES: WeakIdKeyDictionary = WeakIdKeyDictionary()


def remember_ranges(mesh: DeviceMesh, mesh_dim: int, bounds: tuple[int, ...]) -> None:
    """Note that one dim of `mesh` cuts by these ranges, not equally; for tensors on this very mesh object."""
    _RANGES[mesh] = (mesh_dim, bounds)


def with_ranges(tensors: Mapping[str, Tensor], placed_as: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The same tensors, sharing memory, for torch.distributed.checkpoint to save or to load into: each piece says where
    in the whole it lies.

    Args:
        tensors: by name.
        placed_as: tensors that are known here and placed alike, where `tensors` are copies on another mesh object.
    """
    known = tensors if placed_as is None else placed_as
    return {name: _with_range(tensor, known[name]) for name, tensor in tensors.items()}


def _with_range(tensor: Tensor, placed_as: Tensor) -> Tensor:
    if not isinstance(tensor, DTensor) or not isinstance(placed_as, DTensor) or placed_as.device_mesh not in _RANGES:
        return tensor
    mesh = placed_as.device_mesh
    mesh_dim, bounds = _RANGES[mesh]
    coordinate = mesh.get_coordinate()
    assert coordinate is not None
    offsets = [0] * tensor.dim()
    for n, (placement, position) in enumerate(zip(tensor.placements, coordinate, strict=True)):
        if isinstance(placement, Shard):
            size = tensor.shape[placement.dim]
            offsets[placement.dim] = bounds[position] if n == mesh_dim else chunk(size, mesh.size(n), position)[0]
    # Of the same kind as torchrec's tables, whose rows are divided unequally too.
    # An empty piece is none: it would begin where the next one does, and only one of the two would be saved.
    is_empty = tensor._local_tensor.numel() == 0
    piece = LocalShardsWrapper([] if is_empty else [tensor._local_tensor], [] if is_empty else [tuple(offsets)])
    # Not from_local, which would copy a piece that lies in host memory back to the device of the mesh.
    return DTensor(piece, tensor._spec, requires_grad=False)
