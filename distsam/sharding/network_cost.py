"""What a network costs a rank in a pass: multiplications and messages, for cores cut along bonds or by rows."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil, log2

from distsam.sharding.cut_cores import CutCores, Rows
from distsam.sharding.meetings import WHOLE, Held, MeetingPlan, Sizes, plan_meetings
from distsam.sharding.moves import AxisRanks
from distsam.sharding.plan import NetworkWeights
from distsam.sharding.plans.bond import bonds_to_cut
from distsam.sharding.traffic import Link
from distsam.tensornet import NetworkSpec
from distsam.tensornet.contraction import Indices
from distsam.tensornet.cost import NS_PER_MULTIPLY_ADD, cost_ns
from distsam.tensornet.products import gathered
from distsam.tensornet.sliced import BATCH

# A multiplication and an addition, forward, and twice that backward.
FLOPS_PER_MULTIPLY_ADD = 6


@dataclass(frozen=True)
class NetworkUse:
    """How a pass contracts a network.

    Args:
        network: which.
        kind: "entries" of T, "multiply" by T as a linear map, "rows" of T, or T "dense"; as of `Contractor`.
        num_rows: entries, vectors or positions of one call, of all data ranks together; dense has none.
        modes: those that the batch stands for, of "multiply" and "rows".
        num_calls: in a pass.
    """

    network: NetworkWeights
    kind: str
    num_rows: int = 1
    modes: Indices = ()
    num_calls: int = 1


@dataclass(frozen=True)
class NetworkWork:
    """Of one rank, forward and backward.

    Attributes:
        flops: operations; what is looked up or copied counts as those that take as long on a CPU.
        sent_elements: by a rank.
        num_messages: to all ranks of the axis.
    """

    flops: float = 0.0
    sent_elements: float = 0.0
    num_messages: int = 0

    def time_s(self, itemsize: int, num_ranks: int, link: Link, flops_per_s: float) -> tuple[float, float]:
        """(computing, sending); of messages along an axis of `num_ranks`, with elements of `itemsize` bytes."""
        if num_ranks == 1:
            return self.flops / flops_per_s, 0.0
        sent_bytes = self.sent_elements * itemsize * (num_ranks - 1) / num_ranks
        hops = 2 * ceil(log2(num_ranks)) * self.num_messages
        return self.flops / flops_per_s, sent_bytes / link.bytes_per_s + hops * link.latency_s


def work_of(use: NetworkUse, num_bond: int = 1, num_data: int = 1, rows: tuple[str, int] | None = None) -> NetworkWork:
    """The work of one rank in all calls of a pass.

    Args:
        use: what is contracted.
        num_bond: ranks that share bonds; 1: nobody cuts any.
        num_data: into how many parts the batch is divided.
        rows: a mode, and the number of ranks that divide its rows; None: every rank has all of them.
    """
    spec, num_rows = use.network.spec, max(1, ceil(use.num_rows / num_data))
    cuts = bonds_to_cut(spec, num_bond) if num_bond > 1 else (None,) * spec.num_cores
    if use.kind == "entries":
        work = _of_entries(spec, cuts, num_bond, num_rows, rows)
    else:
        work = _of_batch(spec, cuts, num_bond, num_rows, use.kind, use.modes)
    num = use.num_calls
    return NetworkWork(num * work.flops, num * work.sent_elements, num * work.num_messages)


@lru_cache(maxsize=4096)
def _of_entries(
    spec: NetworkSpec, cuts: tuple[str | None, ...], num_bond: int, num_rows: int, rows: tuple[str, int] | None
) -> NetworkWork:
    here = None if rows is None else Rows(rows[0], 0, -(-spec.size(rows[0]) // rows[1]), AxisRanks(None, rows[1], 0))
    found = CutCores(spec, cuts, AxisRanks(None, num_bond, 0), here).for_entries(num_rows)
    # Calls are left out: they take what they take on a CPU, under every plan.
    flops_per_ns = FLOPS_PER_MULTIPLY_ADD / NS_PER_MULTIPLY_ADD
    plans = (*found.merges, *([] if found.join is None else [found.join]))
    num_messages = sum(_num_messages(plan) for plan in plans) if num_bond > 1 else 0
    return NetworkWork(
        flops_per_ns * cost_ns(found.plan.work._replace(calls=0)),
        found.moved_elements if num_bond > 1 else 0,
        # The sum of the entries themselves, where nothing else is sent.
        max(1, num_messages) if num_bond > 1 else 0,
    )


@lru_cache(maxsize=4096)
def _of_batch(
    spec: NetworkSpec, cuts: tuple[str | None, ...], num_bond: int, num_rows: int, kind: str, modes: Indices
) -> NetworkWork:
    held = tuple(Held(cut) for cut in cuts)
    sizes: Sizes = (*spec.sizes, (BATCH, num_rows))
    others = tuple(mode for mode in spec.modes if mode not in modes)
    if kind == "dense":
        plan = plan_meetings(spec.cores, spec.modes, spec.sizes, held, num_bond)
    elif kind == "rows":
        plan = plan_meetings(tuple(gathered(c, modes) for c in spec.cores), (BATCH, *others), sizes, held, num_bond)
    else:
        operands = ((BATCH, *modes), *spec.cores)
        plan = plan_meetings(operands, (BATCH, *others), sizes, (WHOLE, *held), num_bond)
    return NetworkWork(
        FLOPS_PER_MULTIPLY_ADD * plan.multiply_adds,
        plan.moved_elements if num_bond > 1 else 0,
        _num_messages(plan) if num_bond > 1 else 0,
    )


def _num_messages(plan: MeetingPlan) -> int:
    """One for each move, forward or backward, and one that makes the result whole."""
    return sum(len(moves) for meeting in plan.meetings for moves in meeting.moves) + (plan.held != WHOLE)


def merged(uses: Iterable[NetworkUse]) -> tuple[NetworkUse, ...]:
    """The same uses, calls that are alike counted together."""
    found: dict[NetworkUse, int] = {}
    for use in uses:
        key = replace(use, num_calls=1)
        found[key] = found.get(key, 0) + use.num_calls
    return tuple(replace(use, num_calls=count) for use, count in found.items())
