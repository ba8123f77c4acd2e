"""What a plan costs, by hand: small models whose numbers fit in the head."""

from distsam.sharding import Fsdp, Replicate, ShardPlan
from distsam.sharding.buckets import BUCKET_BYTES, bucket_bytes
from distsam.sharding.cost import (
    Memory,
    State,
    StepForm,
    Weights,
    collectives_of,
    empty_pieces,
    memory_of,
    piece_shape,
)
from distsam.sharding.plan import coordinate_of
from distsam.sharding.traffic import LINKS, Collective, Link, total_bytes, total_time_s

# A network of two cores of 8 x 2 and 8 x 4, and one number beside it, in float32.
SHAPES = {"a": (8, 2), "b": (8, 4), "bias": (1,)}
ADAM, SAM = State(2, 4), StepForm((9, 5))


def weights(**more: object) -> Weights:
    given = {
        "itemsizes": dict.fromkeys(SHAPES, 4),
        "cores": frozenset("ab"),
        "trained": frozenset(SHAPES),
        "groups": (("a", "b"),),
    }
    return Weights(**{**given, **more})  # type: ignore[arg-type]


def of_kind(kind: str, found: tuple[Collective, ...]) -> list[tuple[int, int]]:
    return [(call.message_bytes, call.num_ranks) for call in found if call.kind == kind]


def test_whole_weights_cost_every_rank_all_of_them() -> None:
    plan = Replicate().place(SHAPES, (("replicate", 4),))
    # 49 numbers of 4 bytes; Adam's two copies and three counts; SAM's copy, and the gradients of two passes.
    assert memory_of(weights(), plan, 3, ADAM, 2) == Memory(192, 4, 392, 404, 196)
    assert memory_of(weights(), plan, 3, State(), 1) == Memory(192, 4, 196, 0, 0)


def test_small_whole_gradients_carry_the_numbers_of_the_pass() -> None:
    plan = Replicate().place(SHAPES, (("replicate", 4),))
    # 49 gradients, 3 counts, loss and stop flag.
    assert collectives_of(weights(), plan, SAM) == (Collective("all_reduce", 54 * 4, 4),) * 2


def test_gradients_in_two_precisions_travel_apart_from_the_numbers() -> None:
    plan = Replicate().place(SHAPES, (("replicate", 4),))
    found = collectives_of(weights(itemsizes={"a": 4, "b": 4, "bias": 8}), plan, StepForm((9,)))
    # The last parameters first; then 48 gradients and 2 counts, and the 9 numbers of the pass.
    assert of_kind("all_reduce", found) == [(2 * 8, 4), (50 * 4, 4), (9 * 8, 4)]


def test_large_whole_gradients_fill_buckets_from_the_last_parameter_on() -> None:
    num = BUCKET_BYTES // 8  # two of them fill a bucket of float32
    plan = Replicate().place({"a": (num,), "b": (num,), "c": (num,)}, (("replicate", 2),))
    large = Weights(dict.fromkeys("abc", 4), frozenset(), frozenset("abc"))
    found = collectives_of(large, plan, StepForm((5,)))
    assert of_kind("all_reduce", found) == [(4 * (2 * num + 2), 2), (4 * (num + 1), 2), (40, 2)]


def test_messages_are_as_large_as_hides_most_of_them() -> None:
    """Of the sizes tried, none has less latency and unhidden bytes together."""
    link, total, num_ranks = LINKS["infiniband"], 2 * 10**9, 64

    def unhidden_s(size: int) -> float:
        return total / size * 12 * link.latency_s + size / link.bytes_per_s * 2 * 63 / 64

    chosen = bucket_bytes(total, num_ranks, link)
    assert unhidden_s(chosen) <= min(unhidden_s(chosen * n // 100) for n in (50, 80, 99, 101, 125, 200))
    assert bucket_bytes(1000, 2, LINKS["nvlink"]) == 2**20
    assert bucket_bytes(total, num_ranks, None) == BUCKET_BYTES


def test_cut_weights_are_gathered_twice_and_reduced_once_a_pass() -> None:
    plan = Fsdp().place(SHAPES, (("shard", 4),))
    # Of the cores 12 numbers; the bias is whole.
    assert memory_of(weights(), plan, 0, ADAM, 2) == Memory(48, 4, 104, 116, 52)
    found = collectives_of(weights(), plan, SAM)
    assert of_kind("all_gather", found) == [(192, 4)] * 4
    assert of_kind("reduce_scatter", found) == [(192, 4)] * 2
    assert of_kind("all_reduce", found) == [(8, 4), (72, 4), (8, 4), (40, 4)]


def test_micro_batches_gather_again_and_reduce_once() -> None:
    plan = Fsdp().place(SHAPES, (("shard", 4),))
    found = collectives_of(weights(), plan, StepForm((9,), accumulate=3))
    assert [len(of_kind(kind, found)) for kind in ("all_gather", "reduce_scatter", "all_reduce")] == [6, 1, 2]


def test_replicas_sum_what_the_shards_were_reduced_to() -> None:
    plan = Fsdp(2).place(SHAPES, (("replicate", 2), ("shard", 4)))
    found = collectives_of(weights(), plan, StepForm((9,)))
    assert of_kind("reduce_scatter", found) == [(192, 4)]
    # Of 48 numbers a quarter, over the replicas; the bias and the numbers of the pass over all.
    assert of_kind("all_reduce", found) == [(48, 2), (8, 8), (72, 8)]


def test_what_is_frozen_is_held_and_neither_moved_nor_sent() -> None:
    plan = Replicate().place(SHAPES, (("replicate", 2),))
    frozen = weights(trained=frozenset(("bias",)))
    assert memory_of(frozen, plan, 0, ADAM, 2) == Memory(192, 4, 8, 12, 4)
    assert collectives_of(frozen, plan, StepForm((9,))) == (Collective("all_reduce", 4 * (1 + 1 + 2), 2),)


def test_cores_cut_along_an_axis_of_the_same_data_are_averaged_over_the_data_axis_alone() -> None:
    plan = ShardPlan(
        "mine",
        (("data", 3), ("bond", 2)),
        ("data",),
        tuple(SHAPES.items()),
        (("a", (None, 1)), ("b", (None, 0)), ("bias", (None, None))),
    )
    assert piece_shape(plan, "b", 5) == (4, 4)
    assert memory_of(weights(), plan, 5, State(1), 1) == Memory(96, 4, 100, 100, 0)
    # 8 + 16 + 1 gradients and 3 counts over 3 ranks; 9 numbers of the pass over 6.
    assert of_kind("all_reduce", collectives_of(weights(), plan, StepForm((9,)))) == [(28 * 4, 3), (72, 6)]


def test_a_world_of_one_sends_nothing() -> None:
    assert collectives_of(weights(), Replicate().place(SHAPES, (("replicate", 1),)), SAM) == ()


def test_ranks_that_all_see_the_same_data_average_nothing() -> None:
    placements = (("a", (None, 1)), ("b", (None, 0)), ("bias", (None, None)))
    plan = ShardPlan("mine", (("data", 1), ("bond", 2)), ("data",), tuple(SHAPES.items()), placements)
    assert collectives_of(weights(), plan, StepForm((9,))) == (Collective("all_reduce", 72, 2),)


def test_uneven_pieces_are_stored_and_sent_padded_and_the_rest_is_not() -> None:
    plan = Fsdp(uneven_from=2).place({"a": (7, 2)}, (("shard", 4),))
    uneven = Weights({"a": 4}, frozenset("a"), frozenset("a"), (("a",),))
    assert [piece_shape(plan, "a", rank) for rank in range(4)] == [(2, 2), (2, 2), (2, 2), (1, 2)]
    assert memory_of(uneven, plan, 3, ADAM, 2) == Memory(16, 0, 32, 20, 8)
    assert of_kind("all_gather", collectives_of(uneven, plan, StepForm((3,)))) == [(64, 4)] * 2


def test_the_last_ranks_of_an_uneven_cut_may_have_nothing() -> None:
    plan = Fsdp(uneven_from=2).place({"a": (5, 3), "nothing": (0, 4)}, (("shard", 4),))
    assert [empty_pieces(plan, rank) for rank in range(4)] == [(), (), (), ("a",)]


def test_ranks_run_fastest_along_the_last_axis() -> None:
    assert [coordinate_of(rank, (("x", 2), ("y", 3))) for rank in (0, 2, 3, 5)] == [(0, 0), (0, 2), (1, 0), (1, 2)]


def test_a_ring_sends_each_byte_once_and_for_a_sum_twice() -> None:
    link = Link("test", bytes_per_s=100.0, latency_s=1.0, source="")
    assert Collective("all_gather", 400, 4).wire_bytes == 300
    assert Collective("all_gather", 400, 4).time_s(link) == 3 + 2
    assert Collective("all_reduce", 400, 4).time_s(link) == 2 * (3 + 2)
    assert Collective("all_reduce", 400, 1).time_s(link) == 0
    calls = [Collective("all_gather", 400, 4), Collective("reduce_scatter", 200, 2)]
    assert total_bytes(calls) == 600
    assert total_time_s(calls, link) == 5 + 2


def test_faster_links_take_less_time_for_any_message() -> None:
    for size in (8, 2**30):
        times = [Collective("all_reduce", size, 64).time_s(link) for link in LINKS.values()]
        assert times == sorted(times)


def test_rows_that_have_their_data_are_neither_gathered_nor_averaged_and_the_rest_is() -> None:
    """They were taken for FSDP2's, which gathers what a data axis cuts."""
    weights = Weights({"rows": 4, "small": 4}, frozenset({"rows", "small"}), frozenset({"rows", "small"}), (("rows",),))
    placements = (("rows", (None, 0)), ("small", (None, None)))
    axes, shapes = (("replicate", 1), ("mode", 2)), (("rows", (7, 2)), ("small", (3, 2)))
    plan = ShardPlan("mode", axes, ("replicate", "mode"), shapes, placements, ("mode", (0, 2, 7)))
    assert memory_of(weights, plan, 1, ADAM, 1).cores == 4 * (5 * 2 + 3 * 2)
    # The gradient of the small core with its count, and the numbers of the pass.
    assert [call.message_bytes for call in collectives_of(weights, plan, StepForm((3,)))] == [4 * (6 + 1), 8 * 3]
