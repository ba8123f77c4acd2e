"""Messages between ranks: how many bytes a collective moves over a rank's link, and how long that takes."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil, log2

ALL_GATHER, REDUCE_SCATTER, ALL_REDUCE = "all_gather", "reduce_scatter", "all_reduce"


@dataclass(frozen=True)
class Link:
    """What a rank can send, in round figures.

    Attributes:
        name: by which users choose it.
        bytes_per_s: in one direction, of one rank.
        latency_s: of the smallest message to one other rank, the call included.
        source: where the figures come from.
    """

    name: str
    bytes_per_s: float
    latency_s: float
    source: str


# A rank is taken to have the whole link. Latencies hold the launch of the collective, about 5 us on a GPU.
LINKS: dict[str, Link] = {
    link.name: link
    for link in (
        Link("nvlink", 450e9, 5e-6, "NVLink 4, H100 data sheet: 900 GB/s both ways together"),
        Link("infiniband", 50e9, 10e-6, "InfiniBand NDR, ConnectX-7 data sheet: 400 Gb/s a port"),
        Link("ethernet", 12.5e9, 30e-6, "100 Gb/s Ethernet over TCP"),
        Link("loopback", 1e9, 100e-6, "gloo between processes of one machine, a round figure of CPUs"),
    )
}


@dataclass(frozen=True)
class Collective:
    """One call that every rank of a group makes.

    Attributes:
        kind: all_gather, reduce_scatter or all_reduce; other words count as a message to all.
        message_bytes: of the largest tensor of the call: what is gathered, scattered or summed, whole.
        num_ranks: of the group.
    """

    kind: str
    message_bytes: int
    num_ranks: int

    @property
    def wire_bytes(self) -> float:
        """What one rank sends: (n - 1) / n of the message, twice that for an all-reduce (ring algorithms)."""
        return self._num_phases * self.message_bytes * (self.num_ranks - 1) / self.num_ranks

    def time_s(self, link: Link) -> float:
        """Of this call by itself: its bytes at the link's speed, and a latency for each of log2 n hops."""
        hops = self._num_phases * ceil(log2(self.num_ranks))
        return self.wire_bytes / link.bytes_per_s + hops * link.latency_s

    @property
    def _num_phases(self) -> int:
        return 2 if self.kind == ALL_REDUCE else 1


def total_bytes(collectives: Iterable[Collective]) -> int:
    """The sum of the messages."""
    return sum(collective.message_bytes for collective in collectives)


def total_time_s(collectives: Iterable[Collective], link: Link) -> float:
    """One call after the other, none of them behind a computation: the longest that they can take."""
    return sum(collective.time_s(link) for collective in collectives)
