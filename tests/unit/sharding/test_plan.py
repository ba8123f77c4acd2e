"""Plans are data: each core on its widest dim that divides, nothing padded, mistakes named."""

import dataclasses

import pytest

import distsam
from distsam.errors import InputError
from distsam.sharding import ShardPlan, plan_shards


def shapes_of(spec: distsam.NetworkSpec) -> dict[str, tuple[int, ...]]:
    return {f"cores.{k}": shape for k, shape in enumerate(spec.core_shapes)}


def test_each_core_is_cut_along_its_widest_dim_that_divides() -> None:
    shapes = shapes_of(distsam.tucker((438, 6, 11), (8, 6, 8)))
    plan = plan_shards(shapes, "fsdp", (2,))
    # core (8, 6, 8): the first of the two widest; (438, 8): 438; (6, 6): the first; (11, 8): 8, because 11 is odd
    assert [plan.dim_of(name) for name in shapes] == [0, 0, 0, 1]


def test_a_core_that_nothing_divides_stays_whole_and_is_not_padded() -> None:
    plan = plan_shards({"big": (8, 3), "odd": (7, 5), "scalar": ()}, "fsdp", (4,))
    assert plan.dims == (("big", 0), ("odd", None), ("scalar", None))
    assert "odd (7 x 5): whole on every rank" in plan.describe()
    assert "big (8 x 3): dim 0 cut into 4 pieces of 2" in plan.describe()


def test_a_parameter_without_elements_stays_whole() -> None:
    """Its other dim was cut, and DTensor found the pieces uneven."""
    assert plan_shards({"core": (8, 3), "empty": (0, 4)}, "fsdp", (2,)).dim_of("empty") is None


def test_the_last_mesh_axis_is_the_one_that_cuts() -> None:
    assert plan_shards({"core": (6, 5)}, "fsdp", (5, 3)).dim_of("core") == 0
    assert plan_shards({"core": (6, 5)}, "fsdp", (3, 5)).dim_of("core") == 1


def test_replicate_cuts_nothing() -> None:
    plan = plan_shards({"core": (8, 8)}, "replicate", (4,))
    assert plan.dims == (("core", None),)
    assert plan.num_shards == 1


def test_a_world_that_no_core_can_serve_is_refused_with_sizes_that_work() -> None:
    shapes = shapes_of(distsam.tucker((438, 6, 11), (8, 6, 8)))
    with pytest.raises(InputError, match=r"sharding.plan=fsdp: .* 7 ranks divide; use a shard axis of 2, 3, 4, 6, 8"):
        plan_shards(shapes, "fsdp", (7,))


def test_an_unknown_plan_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"sharding.plan=zero"):
        plan_shards({"core": (8, 8)}, "zero", (4,))
    with pytest.raises(InputError, match=r"sharding.plan=zero"):
        distsam.shard(distsam.TensorNetwork(distsam.tt((8, 8), 2)), None, "zero")


def test_a_plan_is_frozen() -> None:
    plan = plan_shards({"core": (8, 8)}, "fsdp", (4,))
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.name = "replicate"  # type: ignore[misc]


SHAPES = (("left", (8, 3)), ("right", (3, 5)))


@pytest.mark.parametrize(
    ("name", "mesh_shape", "dims", "message"),
    [
        ("zero", (4,), (("left", 0), ("right", None)), "sharding.plan=zero"),
        ("fsdp", (), (("left", 0), ("right", None)), "needs an axis"),
        ("fsdp", (4,), (("left", 0),), "a dim or None for each parameter"),
        ("fsdp", (4,), (("left", 0), ("wrong", None)), "a dim or None for each parameter"),
        (
            "fsdp",
            (4,),
            (("left", 2), ("right", None)),
            r"left of shape \(8, 3\) cannot be cut along dim 2 into 4 pieces",
        ),
        ("fsdp", (4,), (("left", -2), ("right", None)), "left .* cannot be cut along dim -2"),
        ("fsdp", (4,), (("left", 0), ("right", 1)), r"right of shape \(3, 5\) cannot be cut along dim 1 into 4 pieces"),
        ("replicate", (4,), (("left", 0), ("right", None)), "left .* cannot be cut along dim 0 into 1 pieces"),
    ],
)
def test_a_plan_made_by_hand_that_cannot_be_is_refused(
    name: str, mesh_shape: tuple[int, ...], dims: tuple[tuple[str, int | None], ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        ShardPlan(name, mesh_shape, SHAPES, dims)
