"""Every collective that distsam itself issues; FSDP2 and checkpoints issue their own.

Without a process group each function is the one-process case of the same claim.
"""

from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
from torch import Tensor


def is_distributed() -> bool:
    """True if this process belongs to a process group (also one of world size 1)."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process's rank in the world; 0 without a process group."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """How many processes the world has; 1 without a process group."""
    return dist.get_world_size() if is_distributed() else 1


def all_reduce_sum_(vector: Tensor) -> Tensor:
    """Sum of `vector` over the world, in place, the same bits on every rank.

    Collectives: one all_reduce(sum) of `vector`; every rank calls it. None without a process group.
    """
    if is_distributed():
        dist.all_reduce(vector)
    return vector


def start_all_reduce_sum_(buffer: Tensor, group: dist.ProcessGroup | None = None) -> Callable[[], None]:
    """Start summing `buffer` over the world in place; the returned function waits for the sum.

    Args:
        buffer: the summand.
        group: a group of the whole world; None is the default one.

    Collectives: one asynchronous all_reduce(sum) of `buffer`; every rank calls it in the same order.
    """
    work = dist.all_reduce(buffer, group=group, async_op=True)

    def wait() -> None:
        if work is not None:
            work.wait()

    return wait


def new_world_group() -> dist.ProcessGroup | None:
    """A second process group of the whole world, whose collectives are ordered among themselves only.

    Collectives: those of starting a group, once; every rank calls it. None without a process group.
    """
    return dist.new_group() if is_distributed() else None


@torch.no_grad()
def broadcast_from_first_(tensors: Iterable[Tensor]) -> None:
    """Give every rank the values that rank 0 holds, in place.

    Collectives: one broadcast per tensor, once at the start of a run; every rank calls it.
    """
    if is_distributed():
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def barrier() -> None:
    """Return when every rank has called it.

    Collectives: one barrier; none without a process group.
    """
    if is_distributed():
        dist.barrier()
