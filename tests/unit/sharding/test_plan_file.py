"""A plan written and read is the same plan; what is wrong with a file is said by its key."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import distsam
from distsam.errors import InputError
from distsam.sharding import Bond, Fsdp, Mode, NetworkWeights, Pinned, Plan, Replicate, ShardPlan, place_model

AXES = ("replicate", "shard", "bond")
SPEC = distsam.cp((12, 8, 6), 4)


@st.composite
def shard_plans(draw: st.DrawFn) -> ShardPlan:
    """Any plan whose axes have several ranks each."""
    axes = tuple((name, draw(st.integers(2, 5))) for name in AXES[: draw(st.integers(1, 3))])
    names = draw(st.lists(st.text(min_size=1, max_size=5), unique=True, max_size=4))
    shapes = tuple((name, tuple(draw(st.lists(st.integers(1, 9), max_size=3)))) for name in names)
    placements = []
    for name, shape in shapes:
        free = list(range(len(shape)))
        dims: list[int | None] = []
        for _ in axes:
            dim = draw(st.sampled_from([None, *free]))
            dims.append(dim)
            free = [d for d in free if d != dim]
        placements.append((name, tuple(dims)))
    return ShardPlan(draw(st.text(min_size=1)), axes, (axes[0][0],), shapes, tuple(placements))


@given(shard_plans())
def test_a_plan_that_is_written_and_read_is_the_same_plan(plan: ShardPlan) -> None:
    assert ShardPlan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize("plan", [Replicate(), Fsdp(), Fsdp(2), Bond(), Bond(2), Mode(0), Mode(0, 2)])
def test_the_plans_that_we_make_can_be_pinned(plan: Plan) -> None:
    model = distsam.TensorNetwork(SPEC)
    made = place_model(plan, model, plan.axes(4))
    pinned = Pinned(ShardPlan.from_json(made.to_json()), "plan.json")
    assert pinned.axes(4) == plan.axes(4)
    assert (pinned.name, pinned.data_axes) == (plan.name, plan.data_axes)
    assert place_model(pinned, model, pinned.axes(4)) == made


def test_an_axis_of_one_rank_beside_others_is_neither_written_nor_read() -> None:
    model = distsam.TensorNetwork(SPEC)
    made = place_model(Fsdp(4), model, Fsdp(4).axes(4))
    with pytest.raises(InputError, match=r"sharding plan fsdp: axes: shard has 1 rank beside replicate; leave it out"):
        made.to_json()


def changed(change: Callable[[Any], Any]) -> str:
    plan = Fsdp(2).place({"left": (8, 3), "right": (3, 5)}, (("replicate", 2), ("shard", 4)))
    raw = json.loads(plan.to_json())
    change(raw)
    return json.dumps(raw)


def setting(value: Any, *keys: Any) -> Callable[[Any], None]:
    def change(raw: Any) -> None:
        for key in keys[:-1]:
            raw = raw[key]
        raw[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (setting(1, "axes", 1, 1), "p.json: axes: shard has 1 rank beside replicate"),
        (setting(0, "axes", 0, 1), "p.json: axes[0][1]: is 0; must be a whole number of at least 1"),
        (setting(["shard"], "axes", 0), "p.json: axes[0]: is ['shard']; give a name and a number"),
        (setting("shard", "axes", 0, 0), "p.json: sharding plan fsdp: axes"),
        (setting(["data"], "data_axes"), "p.json: sharding plan fsdp: axes"),
        (setting(5, "parameters", 0, "cut", 1), "left of shape (8, 3) cannot be cut along dim 5 into 4 pieces by axis"),
        (setting(-1, "parameters", 0, "cut", 1), "p.json: parameters[0].cut: is -1; must be a whole number"),
        (setting([0], "parameters", 0, "cut"), "left has 1 placements; give a dim or None for each axis"),
        (setting(True, "parameters", 0, "shape", 0), "p.json: parameters[0].shape: is True; must be a whole number"),
        (setting("left", "parameters", 1, "name"), "p.json: parameters[1].name: is 'left', which stands there twice"),
        (setting(3, "parameters"), "p.json: parameters: is 3; must be a list"),
        (setting(3, "parameters", 0), "p.json: parameters[0]: must be an object with name, shape, cut"),
        (setting(3, "parameters", 0, "dim"), "p.json: parameters[0].dim: unknown key; there are name, shape, cut"),
        (lambda raw: raw.pop("routed"), "p.json: routed: is missing"),
        (setting({"axis": "shard", "bounds": [0, 8]}, "routed"), "p.json: sharding plan fsdp: rows"),
        (setting("", "name"), "p.json: name: is ''; must be a name"),
    ],
)
def test_a_file_that_holds_no_plan_is_refused_by_its_key(change: Callable[[Any], Any], says: str) -> None:
    with pytest.raises(InputError) as caught:
        ShardPlan.from_json(changed(change), "p.json")
    assert says in str(caught.value)
    assert str(caught.value).startswith("p.json: ")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"name": 1}', "[" * 100_000])
def test_what_is_no_plan_at_all_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"^p.json: "):
        ShardPlan.from_json(text, "p.json")


def test_a_plan_for_another_world_is_refused_with_what_would_do() -> None:
    made = Fsdp(2).place({"left": (8, 3)}, (("replicate", 2), ("shard", 4)))
    with pytest.raises(InputError) as caught:
        Pinned(made, "p.json").axes(2)
    assert str(caught.value) == (
        "plan: p.json: made for 8 ranks (2 (replicate) x 4 (shard)), and this world has 2 ranks; start 8, use auto, or "
        "save a plan for 2 ranks with distsam plan --world-size 2 --save"
    )


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (distsam.cp((12, 8), 4), "made for cores.2 of shape (6, 4): the model has no such parameter"),
        (distsam.cp((12, 8, 6, 3), 4), "the model has cores.3 of shape (3, 4), and the plan has it not"),
        (distsam.cp((12, 8, 6), 3), "the model has cores.0 of shape (12, 3), and the plan has it of shape (12, 4)"),
    ],
)
def test_a_plan_for_another_model_is_refused(spec: distsam.NetworkSpec, says: str) -> None:
    made = place_model(Fsdp(), distsam.TensorNetwork(SPEC), (("shard", 2),))
    with pytest.raises(InputError) as caught:
        place_model(Pinned(made, "p.json"), distsam.TensorNetwork(spec), made.axes)
    assert says in str(caught.value)


def test_a_plan_that_cuts_frozen_weights_is_refused() -> None:
    model = distsam.TensorNetwork(SPEC)
    made = place_model(Fsdp(), model, (("shard", 2),))
    model.cores[0].requires_grad_(False)
    with pytest.raises(InputError, match=r"cuts cores.0, which is frozen"):
        place_model(Pinned(made, "p.json"), model, made.axes)


def test_rows_of_another_mode_or_other_data_are_refused() -> None:
    networks = [NetworkWeights(SPEC, ("cores.0", "cores.1", "cores.2"))]
    shapes = {f"cores.{k}": shape for k, shape in enumerate(SPEC.core_shapes)}
    made = Mode(0, bounds=(0, 5, 12)).place(shapes, Mode(0).axes(2), networks)
    assert Pinned(made, "p.json", 0, (0, 5, 12)).place(shapes, made.axes, networks) == made
    with pytest.raises(InputError, match=r"mode: 1: is cores.1's; the plan p.json divides the rows of"):
        Pinned(made, "p.json", 1).place(shapes, made.axes, networks)
    with pytest.raises(InputError, match=r"p.json: made for another run: its rows are divided as other data need it"):
        Pinned(made, "p.json", 0, (0, 6, 12)).place(shapes, made.axes, networks)
