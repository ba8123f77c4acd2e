"""What a step of a run is expected to cost one rank: the numbers, their form for JSON, and other worlds by formulas."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from math import prod
from typing import Any

from distsam.errors import InputError
from distsam.sharding import ShardPlan
from distsam.sharding.cost import Memory, State, StepForm, Weights, collectives_of, empty_pieces, memory_of
from distsam.sharding.traffic import LINKS, Collective, Link, total_bytes, total_time_s
from distsam.train.config import Config
from distsam.train.seams import AUTO


@dataclass(frozen=True)
class Forecast:
    """What one step costs one rank.

    Attributes:
        rank: of which; of the world that `plan` is made for.
        plan, weights, step, state: what the formulas of `sharding.cost` take.
        num_trained: parameters that are not frozen.
        memory: bytes that stay, and the gradients; the most at any time of the step.
        activations: the same of the batch, activations and what lives between two operations.
        communication: of messages, and of weights gathered for a pass.
        peak: of everything at one time: not all are largest together.
        collectives: of the step, in their order where it was run.
        flops: of the step.
        sam_collectives, sam_flops: those of them that a step of the base optimizer would not have.
        num_simulated: ranks of the world in which the step was run.
        reasons: why auto took this plan and no other, a line each; none where the plan was given.
    """

    rank: int
    plan: ShardPlan
    weights: Weights
    step: StepForm
    state: State
    num_trained: int
    memory: Memory
    activations: int
    communication: int
    peak: int
    collectives: tuple[Collective, ...]
    sam_collectives: tuple[Collective, ...]
    flops: int
    sam_flops: int
    num_simulated: int
    reasons: tuple[str, ...] = ()

    @property
    def world_size(self) -> int:
        """Ranks of the world that was asked for."""
        return prod(self.plan.mesh_shape)


def extrapolate(small: Forecast, plan: ShardPlan, rank: int) -> Forecast:
    """The forecast for `rank` of another world by formulas: weights by `plan`, the rest as in `small`."""
    memory = memory_of(small.weights, plan, rank, small.state, small.step.num_passes)
    first_passes = replace(small.step, vectors=small.step.vectors[:-1])
    collectives, of_sam = (
        (*collectives_of(small.weights, plan, step, rank), *_inside_networks(small, calls, step, plan))
        for step, calls in ((small.step, small.collectives), (first_passes, small.sam_collectives))
    )
    return replace(
        small,
        rank=rank,
        plan=plan,
        memory=memory,
        peak=small.peak - small.memory.total + memory.total,
        collectives=collectives,
        sam_collectives=of_sam,
    )


def _inside_networks(
    small: Forecast, calls: Sequence[Collective], step: StepForm, plan: ShardPlan
) -> Iterator[Collective]:
    """Those of `calls` that no formula gives: sent along axes whose ranks compute together, of their size in `plan`."""
    sizes = {dict(small.plan.axes)[axis]: dict(plan.axes)[axis] for axis in small.plan.contracted_axes}
    by_formula = Counter(collectives_of(small.weights, small.plan, step, small.rank))
    for call in (Counter(calls) - by_formula).elements():
        yield replace(call, num_ranks=sizes.get(call.num_ranks, call.num_ranks))


def link_for(config: Config, word: str | None = None) -> Link:
    """The speeds that `distsam plan --link` means by `word`; without one those of the config, InfiniBand's for auto.

    Raises:
        InputError: there are none of that name.
    """
    if word is None:
        word = "infiniband" if config.sharding.link == AUTO else config.sharding.link
    if word not in LINKS:
        raise InputError(f"--link: {word!r} is unknown; use one of {', '.join(LINKS)}")
    return LINKS[word]


def record(forecast: Forecast, link: Link, flops_per_s: float) -> dict[str, Any]:
    """The forecast as plain values, for JSON; bytes, seconds, and shares of 1.

    Args:
        link: by which each rank reaches the others.
        flops_per_s: what a rank computes.
    """
    computing, sending = forecast.flops / flops_per_s, total_time_s(forecast.collectives, link)
    of_sam = forecast.sam_flops / flops_per_s + total_time_s(forecast.sam_collectives, link)
    sent = total_bytes(forecast.collectives)
    return {
        "world_size": forecast.world_size,
        "rank": forecast.rank,
        "plan": forecast.plan.name,
        "mesh": dict(forecast.plan.axes),
        "num_parameters": sum(prod(shape) for _, shape in forecast.plan.shapes),
        "num_trained": forecast.num_trained,
        "bytes": {
            **asdict(forecast.memory),
            "activations": forecast.activations,
            "communication": forecast.communication,
            "peak": forecast.peak,
        },
        "collectives": list(_rows(forecast.collectives, link)),
        "time_s": {"computing": computing, "sending": sending, "total": computing + sending},
        "sam_share": {
            "bytes_sent": total_bytes(forecast.sam_collectives) / sent if sent else 0.0,
            "time": of_sam / (computing + sending),
        },
        "empty_pieces": list(empty_pieces(forecast.plan, forecast.rank)),
        "flops": forecast.flops,
        "flops_per_s": flops_per_s,
        "link": asdict(link),
        "simulated_world_size": forecast.num_simulated,
        "reasons": list(forecast.reasons),
    }


def _rows(collectives: Sequence[Collective], link: Link) -> Iterator[dict[str, Any]]:
    """One for each kind and size of group, in the order of their first calls."""
    for kind, num_ranks in dict.fromkeys((call.kind, call.num_ranks) for call in collectives):
        calls = [call for call in collectives if (call.kind, call.num_ranks) == (kind, num_ranks)]
        yield {
            "kind": kind,
            "num_ranks": num_ranks,
            "count": len(calls),
            "bytes": total_bytes(calls),
            "largest_bytes": max(call.message_bytes for call in calls),
            "time_s": total_time_s(calls, link),
        }
