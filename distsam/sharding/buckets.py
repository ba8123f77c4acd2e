"""Which gradients of whole parameters travel together, and as what: rules of sizes, for those who send and those who
plan."""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from math import ceil, log2, sqrt

import torch

from distsam.sharding.traffic import Link

# Where nothing is known of the link.
BUCKET_BYTES = 25 * 2**20
# A smaller message than this is all latency on every link.
LEAST_BUCKET_BYTES = 2**20
# So few bytes take no longer to send after backward than during it.
SMALL_BYTES = 2**18


@dataclass(frozen=True)
class Reduction:
    """How gradients are added up over ranks.

    With `dtype` bfloat16 half of the bytes travel. Every rank's gradient is rounded once, and its sum with those of
    others once for each rank: an element of a mean over N ranks is off by at most ((1 + 2^-8)^(N + 1) - 1) times the
    mean of the ranks' absolute values, and typically by sqrt(N) 2^-9 of it. Weights, what the optimizer keeps, and the
    norms that SAM needs stay as they are. Under FSDP2 micro-batches are added up in `dtype` too.

    Args:
        dtype: that gradients travel in; their own when None.
        link: between the ranks, for the size of messages; None takes 25 MiB.
    """

    dtype: torch.dtype | None = None
    link: Link | None = None

    def itemsize(self, own: int) -> int:
        """Bytes on the way of an element that has `own` bytes."""
        return own if self.dtype is None else self.dtype.itemsize


# Nothing is rounded.
EXACT = Reduction()


def bucket_bytes(total_bytes: int, num_ranks: int, link: Link | None) -> int:
    """The size of message that hides most of an all-reduce behind the backward that makes its gradients.

    Each message costs its latency L, of 2 log2(n) hops, and the last one starts only when backward is done, so that
    all of its bytes B are waited for. total / B * L + B / speed is least at B = sqrt(total * L * speed).
    """
    if link is None or num_ranks == 1:
        return BUCKET_BYTES
    latency_s = 2 * ceil(log2(num_ranks)) * link.latency_s
    bytes_per_s = link.bytes_per_s * num_ranks / (2 * (num_ranks - 1))
    return max(LEAST_BUCKET_BYTES, int(sqrt(total_bytes * latency_s * bytes_per_s)))


def bucketed(sizes: Iterable[tuple[int, Hashable]], num_ranks: int, link: Link | None) -> list[list[int]]:
    """Positions of tensors that share a message, in order.

    Args:
        sizes: bytes of each tensor, and what all of one message must have in common (their dtype and device).
        num_ranks, link: over which they are added up.

    Returns:
        The buckets: neighbours of at most `bucket_bytes` together, or one tensor that is larger by itself.
    """
    given = list(sizes)
    most = bucket_bytes(sum(num_bytes for num_bytes, _ in given), num_ranks, link)
    buckets: list[list[int]] = []
    room, last = 0, None
    for position, (num_bytes, kind) in enumerate(given):
        if not buckets or num_bytes > room or kind != last:
            buckets.append([])
            room = most
        buckets[-1].append(position)
        room, last = room - num_bytes, kind
    return buckets
