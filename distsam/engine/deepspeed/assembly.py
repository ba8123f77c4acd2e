"""Tensors of which each rank holds a part of the flat form, brought into the form of native checkpoints and back.

There every tensor has the shape of its parameter and is cut along its first dim, so that any number of ranks, and any
engine, can load it. On the way a tensor is whole on every rank, one at a time.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from distsam.sharding.collectives import all_reduce_sum_


def mesh_of_all(device: torch.device) -> DeviceMesh:
    """All ranks in a row. Collectives: those of a new process group; every rank calls it."""
    return init_device_mesh(device.type, (dist.get_world_size(),))


def put_together(part: Tensor, start: int, shape: torch.Size) -> Tensor:
    """The whole tensor on every rank, from each one's flat `part` that begins at `start`.

    Collectives: one all_reduce of its bytes; every rank calls it.
    """
    whole = torch.zeros(shape.numel(), dtype=part.dtype, device=part.device)
    whole.narrow(0, start, len(part)).copy_(part)
    # As bytes: no two ranks have the same place, and the sum of a byte and zeros is that byte, also of a -0.0.
    all_reduce_sum_(whole.view(torch.uint8))
    return whole.view(shape)


def spread(whole: Tensor, mesh: DeviceMesh) -> Tensor:
    """This rank's part along the first dim, as a DTensor of the whole; the whole where there is nothing to cut."""
    if mesh.size() == 1 or not whole.dim():
        return whole
    parts, place = whole.chunk(mesh.size()), mesh.get_local_rank()
    own = parts[place].clone() if place < len(parts) else whole[:0].clone()
    return DTensor.from_local(own, mesh, [Shard(0)], run_check=False, shape=whole.shape, stride=whole.stride())


def take_part(tensor: Tensor, start: int, length: int) -> Tensor:
    """A flat part of a tensor, whole or as `spread` gave it.

    Collectives: one all_gather where it was spread; every rank calls it.
    """
    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole.reshape(-1).narrow(0, start, length)
