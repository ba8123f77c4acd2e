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


def test_a_core_that_nothing_divides_stays_whole_and_is_not_padded() -> None:
    plan = Fsdp().place({"big": (8, 3), "odd": (7, 5), "scalar": ()}, (("shard", 4),))
    assert plan.placements == (("big", (0,)), ("odd", (None,)), ("scalar", (None,)))
    assert (plan.is_whole("big"), plan.is_whole("odd")) == (False, True)
    assert "odd (7 x 5): whole on every rank" in plan.describe()
    assert "big (8 x 3): dim 0 cut into 4 pieces of 2" in plan.describe()


def test_a_parameter_without_elements_stays_whole() -> None:
    """Its other dim was cut, and DTensor found the pieces uneven."""
    assert Fsdp().place({"core": (8, 3), "empty": (0, 4)}, (("shard", 2),)).is_whole("empty")


def test_the_last_mesh_axis_is_the_one_that_cuts() -> None:
    assert Fsdp(5).place({"core": (6, 5)}, (("replicate", 5), ("shard", 3))).dims_of("core") == (None, 0)
    assert Fsdp(3).place({"core": (6, 5)}, (("replicate", 3), ("shard", 5))).dims_of("core") == (None, 1)


def test_a_world_that_no_core_can_serve_is_refused_with_sizes_that_work() -> None:
    shapes = shapes_of(distsam.tucker((438, 6, 11), (8, 6, 8)))
    with pytest.raises(InputError, match=r"plan: fsdp: .* 7 ranks divide; use a shard axis of 2, 3, 4, 6, 8"):
        Fsdp().place(shapes, (("shard", 7),))


def test_an_unknown_plan_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"plan: zero: unknown plan; use one of replicate, fsdp"):
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
        (FOUR, (("left", (0,)), ("right", (1,))), r"right of shape \(3, 5\) cannot be cut along dim 1 into 4 pieces"),
        ((("a", 2), ("b", 2)), (("left", (0, 0)), ("right", (None, None))), "left .* each dim once"),
    ],
)
def test_a_plan_made_by_hand_that_cannot_be_is_refused(axes: Axes, placements: Placements, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ShardPlan("mine", axes, tuple(name for name, _ in axes), SHAPES, placements)


def test_a_data_axis_that_is_no_axis_is_refused() -> None:
    with pytest.raises(InputError, match="data axes"):
        ShardPlan("mine", FOUR, ("data",), SHAPES, (("left", (0,)), ("right", (None,))))
