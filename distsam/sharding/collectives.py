"""Every collective that distsam itself issues; FSDP2 and checkpoints issue their own.

Without a process group each function is the one-process case of the same claim.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.distributed as dist
from torch import Tensor

# Torch 2.13 has new names for these two and warns of the old ones; 2.11 has only those.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def is_distributed() -> bool:
    """True if this process belongs to a process group (also one of world size 1)."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process's rank in the world; 0 without a process group."""
    return dist.get_rank() if is_distributed() else 0


def world_size(group: dist.ProcessGroup | None = None) -> int:
    """How many processes `group` has, or the world where it is None; 1 without a process group."""
    return dist.get_world_size(group) if is_distributed() else 1


_is_apart: ContextVar[bool] = ContextVar("is_apart", default=False)


@contextmanager
def apart() -> Iterator[None]:
    """Inside, sums are those of this rank alone and nothing is sent: for what one rank tries out by itself."""
    token = _is_apart.set(True)
    try:
        yield
    finally:
        _is_apart.reset(token)


def all_reduce_sum_(vector: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Sum of `vector` over `group` (None: the world), in place, the same bits on every rank of it.

    Collectives: one all_reduce(sum) of `vector`; every rank calls it. None without a process group, or `apart`.
    """
    if is_distributed() and not _is_apart.get():
        # The group's own method: what dist.all_reduce checks before takes 60 us and more, which a small step feels.
        options = dist.AllreduceOptions()
        options.asyncOp = False
        members = dist.group.WORLD if group is None else group
        assert members is not None
        work = members.allreduce([vector], options)
        if work is not None:
            work.wait()
    return vector


def start_all_reduce_sum_(buffer: Tensor, group: dist.ProcessGroup | None = None) -> Callable[[], None]:
    """Start summing `buffer` over `group` in place; the returned function waits for the sum.

    Args:
        buffer: the summand.
        group: the ranks to sum over; None is the world.

    Collectives: one asynchronous all_reduce(sum) of `buffer`; every rank of the group calls it in the same order.
    """
    work = dist.all_reduce(buffer, group=group, async_op=True)

    def wait() -> None:
        if work is not None:
            work.wait()

    return wait


def gather_pieces(piece: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The pieces of all ranks of `group`, one behind the other along dim 0.

    Args:
        piece: (m, ...) contiguous, of the same shape on every rank.

    Returns:
        (m x ranks, ...).

    Collectives: one all_gather of `piece`; every rank of the group calls it.
    """
    whole = piece.new_empty(piece.shape[0] * world_size(group), *piece.shape[1:])
    _all_gather(whole, piece, group=group)
    return whole


def scatter_sum(summand: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """This rank's piece, along dim 0, of the sum of `summand` over `group`.

    Args:
        summand: (m x ranks, ...) contiguous, of the same shape on every rank.

    Returns:
        (m, ...).

    Collectives: one reduce_scatter(sum) of `summand`; every rank of the group calls it.
    """
    piece = summand.new_empty(summand.shape[0] // world_size(group), *summand.shape[1:])
    _reduce_scatter(piece, summand, group=group)
    return piece


def new_group(members: Sequence[Sequence[int]] | None = None) -> dist.ProcessGroup | None:
    """A new process group, whose collectives are ordered among themselves only.

    Args:
        members: all ranks, divided into groups, the same on every rank: the one that holds this rank is returned;
            None is one group of the whole world.

    Collectives: those of starting the groups, once; every rank calls it. None without a process group.
    """
    if not is_distributed():
        return None
    if members is None:
        return dist.new_group()
    own, _ = dist.new_subgroups_by_enumeration([list(ranks) for ranks in members])
    return own


@torch.no_grad()
def average_(tensors: Sequence[Tensor], group: dist.ProcessGroup | None = None) -> None:
    """Mean of each of these over `group`, in place, the same bits on every rank of it; what is equal stays as it is.

    Collectives: one all_reduce(sum) of all elements together in float64; every rank calls it. None where there are no
        tensors, or one process.
    """
    size = world_size(group)
    if not tensors or size == 1:
        return
    total = all_reduce_sum_(torch.cat([tensor.reshape(-1).double() for tensor in tensors]), group)
    for tensor, mean in zip(tensors, (total / size).split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(mean.reshape(tensor.shape))


@torch.no_grad()
def broadcast_from_first_(tensors: Iterable[Tensor]) -> None:
    """Give every rank the values that rank 0 holds, in place.

    Collectives: one broadcast per tensor, once at the start of a run; every rank calls it.
    """
    if is_distributed():
        for tensor in tensors:
            dist.broadcast(tensor, src=0)
