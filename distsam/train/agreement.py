"""What all ranks must agree on before they go on: that no rank found a mistake, and what rank 0 read."""

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from distsam.errors import InputError, SharedInputError

T = TypeVar("T")


def agreed(make: Callable[[], T]) -> T:
    """The result of `make` on this rank, once `make` has succeeded on every rank.

    Otherwise a rank that found a mistake (such as a file that its machine lacks) would end alone, and the others would
    wait for it in their next collective.

    Args:
        make: runs no collectives that a rank with a mistake would miss.

    Collectives: one gather of two strings or None over the world; every rank calls it. None without a process group.

    Raises:
        InputError: `make` raised it on some rank. In a process group, a SharedInputError of the same message on every
            rank: that of the first rank that had one, which is named unless it is rank 0.
    """
    if not dist.is_initialized():
        return make()
    mistake, made = None, None
    try:
        made = make()
    except InputError as error:
        mistake = str(error), getattr(error, "user_traceback", "")
    mistakes: list[tuple[str, str] | None] = [None] * dist.get_world_size()
    dist.all_gather_object(mistakes, mistake)
    for rank, found in enumerate(mistakes):
        if found is not None:
            message, user_traceback = found
            raise SharedInputError(message if rank == 0 else f"rank {rank}: {message}", user_traceback)
    return made  # type: ignore[return-value]  # no mistake: it was made


def from_first_rank(make: Callable[[], T]) -> T:
    """What `make` gives on rank 0, on every rank; see `from_rank`."""
    return from_rank(0, make)


def from_rank(rank: int, make: Callable[[], T]) -> T:
    """What `make` gives on one rank, on every rank.

    Collectives: one object broadcast over the world; every rank calls it. None without a process group.
    """
    if not dist.is_initialized():
        return make()
    made = [make() if dist.get_rank() == rank else None]
    dist.broadcast_object_list(made, src=rank)
    return made[0]  # type: ignore[return-value]
