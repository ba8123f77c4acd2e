"""Plans are data: each core on its widest dim that divides, nothing padded, mistakes named."""

import dataclasses

import pytest

import distsam
from distsam.errors import InputError
from distsam.sharding import Axes, Fsdp, Replicate, ShardPlan, plan_named


def shapes_of(spec: distsam.NetworkSpec) -> dict[str, tuple[int, ...]]:
    return {f"cores.{k}": shape for k, shape in enumerate(spec.core_shapes)}


def test_each_core_is_cut_along_its_widest_dim_that_divides() -> None:
    shapes = shapes_of(distsam.tucker((438, 6, 11), (8, 6, 8)))
    plan = Fsdp().place(shapes, (("shard", 2),))
    # core (8, 6, 8): the first of the two widest; (438, 8): 438; (6, 6): the first; (11, 8): 8, because 11 is odd
    assert [plan.dims_of(name) for name in shapes] == [(0,), (0,), (0,), (1,)]


def test_a_core_that_nothing_divides_is_cut_unevenly_where_that_at_most_doubles_it() -> None:
    shapes = {"big": (8, 3), "odd": (7, 5), "pair": (2, 5), "single": (1, 5), "scalar": ()}
    plan = Fsdp(uneven_from=2).place(shapes, (("shard", 4),))
    # 7 rows are filled up to 8 and 2 to 4, one would be to 4
    assert [plan.dims_of(name) for name in shapes] == [(0,), (0,), (0,), (None,), (None,)]
    assert (plan.is_whole("odd"), plan.is_whole("single")) == (False, True)
    text = plan.describe()
    assert "single (1 x 5): whole on every rank" in text
    assert "big (8 x 3): dim 0 cut into 4 pieces of 2" in text
    assert "odd (7 x 5): dim 0 cut into 4 pieces of at most 2" in text


def test_what_is_small_stays_whole_where_nothing_divides_it() -> None:
    shapes = {"core": (8, 2), "bias": (7,), "large": (7, 601)}
    assert [Fsdp().place(shapes, (("shard", 4),)).dims_of(name) for name in shapes] == [(0,), (None,), (0,)]


def test_pieces_are_those_of_torch_chunk_and_may_be_empty() -> None:
    plan = Fsdp(uneven_from=2).place({"odd": (7, 5), "pair": (2, 5)}, (("shard", 4),))
    assert [plan.piece_of("odd", (rank,)) for rank in range(4)] == [
        ((0, 0), (2, 5)),
        ((2, 0), (2, 5)),
        ((4, 0), (2, 5)),
        ((6, 0), (1, 5)),
    ]
    assert [plan.piece_of("pair", (rank,))[1] for rank in range(4)] == [(1, 5), (1, 5), (0, 5), (0, 5)]


def test_a_parameter_without_elements_stays_whole() -> None:
    """Its other dim was cut, and DTensor found the pieces uneven."""
    assert Fsdp().place({"core": (8, 3), "empty": (0, 4)}, (("shard", 2),)).is_whole("empty")


def test_the_last_mesh_axis_is_the_one_that_cuts() -> None:
    assert Fsdp(5).place({"core": (6, 5)}, (("replicate", 5), ("shard", 3))).dims_of("core") == (None, 0)
    assert Fsdp(3).place({"core": (6, 5)}, (("replicate", 3), ("shard", 5))).dims_of("core") == (None, 1)


def test_a_world_that_no_core_can_serve_is_refused_with_sizes_that_work() -> None:
    shapes = shapes_of(distsam.tr((5, 5, 5), 1))
    with pytest.raises(InputError, match=r"plan: fsdp: .* 7 ranks divide, or nearly; use a shard axis of 5"):
        Fsdp().place(shapes, (("shard", 7),))


def test_an_unknown_plan_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"plan: zero: unknown plan; use one of replicate, fsdp, bond, mode"):
        plan_named("zero")
    with pytest.raises(InputError, match=r"plan: zero"):
        distsam.shard(distsam.TensorNetwork(distsam.tt((8, 8), 2)), None, "zero")


@pytest.mark.parametrize("replicas", [0, 3])
def test_replicas_that_do_not_divide_the_ranks_are_refused(replicas: int) -> None:
    with pytest.raises(InputError, match=f"replicas: {replicas}: it must divide the world size, which is 4"):
        Fsdp(replicas).axes(4)


def test_a_plan_is_frozen() -> None:
    plan = Replicate().place({"core": (8, 8)}, (("replicate", 4),))
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.name = "fsdp"  # type: ignore[misc]


def test_a_plan_says_which_ranks_see_the_same_data_and_how_each_axis_cuts() -> None:
    axes = (("data", 2), ("bond", 4))
    plan = ShardPlan("mine", axes, ("data",), (("core", (8, 6)),), (("core", (1, 0)),))
    text = plan.describe()
    assert "plan mine on a mesh of 2 (data) x 4 (bond)" in text
    assert "ranks along bond see the same data" in text
    assert "core (8 x 6): dim 1 cut into 2 pieces of 3, dim 0 cut into 4 pieces of 2" in text


SHAPES = (("left", (8, 3)), ("right", (3, 5)))
FOUR = (("shard", 4),)
Placements = tuple[tuple[str, tuple[int | None, ...]], ...]


@pytest.mark.parametrize(
    ("axes", "placements", "message"),
    [
        ((), (("left", ()), ("right", ())), "name each axis once"),
        ((("a", 2), ("a", 2)), (("left", (0, None)), ("right", (None, None))), "name each axis once"),
        (FOUR, (("left", (0,)),), "a placement for each parameter"),
        (FOUR, (("left", (0,)), ("wrong", (None,))), "a placement for each parameter"),
        (FOUR, (("left", (0, None)), ("right", (None,))), "left has 2 placements"),
        (FOUR, (("left", (2,)), ("right", (None,))), r"left of shape \(8, 3\) cannot be cut along dim 2 into 4 pieces"),
        (FOUR, (("left", (-2,)), ("right", (None,))), "left .* cannot be cut along dim -2"),
        (FOUR, (("left", (0,)), ("right", (2,))), r"right of shape \(3, 5\) cannot be cut along dim 2 into 4 pieces"),
        ((("a", 2), ("b", 2)), (("left", (0, 0)), ("right", (None, None))), "left .* each dim once"),
    ],
)
def test_a_plan_made_by_hand_that_cannot_be_is_refused(axes: Axes, placements: Placements, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ShardPlan("mine", axes, tuple(name for name, _ in axes), SHAPES, placements)


def test_a_data_axis_that_is_no_axis_is_refused() -> None:
    with pytest.raises(InputError, match="data axes"):
        ShardPlan("mine", FOUR, ("data",), SHAPES, (("left", (0,)), ("right", (None,))))
