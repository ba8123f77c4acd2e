"""Which gradients of whole parameters travel together: a rule of sizes alone, for those who send and those who plan."""

from collections.abc import Hashable, Iterable

BUCKET_BYTES = 25 * 2**20
# So few bytes take no longer to send after backward than during it.
SMALL_BYTES = 2**18


def bucketed(sizes: Iterable[tuple[int, Hashable]]) -> list[list[int]]:
    """Positions of tensors that share a message, in order.

    Args:
        sizes: bytes of each tensor, and what all of one message must have in common (their dtype and device).

    Returns:
        The buckets: neighbours of at most BUCKET_BYTES together, or one tensor that is larger by itself.
    """
    buckets: list[list[int]] = []
    room, last = 0, None
    for position, (num_bytes, kind) in enumerate(sizes):
        if not buckets or num_bytes > room or kind != last:
            buckets.append([])
            room = BUCKET_BYTES
        buckets[-1].append(position)
        room, last = room - num_bytes, kind
    return buckets
