"""What every plan promises: each parameter placed, in print, and the weights of one process whatever the ranks."""

from math import prod
from typing import Any

import numpy as np
import pytest
from methods import Model
from plans import PLANS, reference, refusal_of_another_mesh, shapes_of, train_on
from rank_pool import RankPool

from distsam.sharding import place_model

every_plan = pytest.mark.parametrize("name", PLANS)


@every_plan
@pytest.mark.parametrize("num_ranks", [2, 4])
def test_every_parameter_has_a_placement_along_every_axis_and_is_printed(name: str, num_ranks: int) -> None:
    plan, model = PLANS[name](), Model()
    shapes, axes = shapes_of(model), plan.axes(num_ranks)
    placed = place_model(plan, model, axes)
    assert prod(size for _, size in axes) == num_ranks
    assert set(plan.data_axes) <= {axis for axis, _ in axes}
    assert (placed.axes, placed.data_axes, dict(placed.shapes)) == (axes, plan.data_axes, shapes)
    assert [(parameter, len(dims)) for parameter, dims in placed.placements] == [(p, len(axes)) for p in shapes]
    text = placed.describe()
    assert all(word in text for word in (placed.name, *shapes, *(axis for axis, _ in axes)))
    assert place_model(plan, model, axes) == placed
    assert len({placed, place_model(plan, model, axes)}) == 1


@pytest.mark.parametrize("name", [name for name in PLANS if name != "fsdp:2"])
def test_one_process_trains_as_the_reference(name: str) -> None:
    assert_right([train_on(name)])


@every_plan
def test_two_ranks_train_as_the_reference(two_ranks: RankPool, name: str) -> None:
    assert_right(two_ranks.run(train_on, name))


@every_plan
def test_four_ranks_train_as_the_reference(four_ranks: RankPool, name: str) -> None:
    assert_right(four_ranks.run(train_on, name))


@every_plan
def test_a_plan_made_for_another_mesh_is_refused(two_ranks: RankPool, name: str) -> None:
    for said in two_ranks.run(refusal_of_another_mesh, name):
        assert said.startswith("plan: made for a mesh of")


def assert_right(answers: list[dict[str, Any]]) -> None:
    """The reference's weights on every rank; every part of the data as often as any other, its loss counted once."""
    expected, loss = reference()
    scale = max(float(np.abs(e).max()) for e in expected)
    for answer in answers:
        for got, wanted in zip(answer["parameters"], expected, strict=True):
            assert float(np.abs(got - wanted).max()) < 1e-12 * scale
        assert answer["loss"] == pytest.approx(loss, rel=1e-12)
        assert answer["weight_of_model"] == answer["weight"]
        assert answer["sum_of_weights"] == pytest.approx(1.0)
    parts = sorted(rank for rank, _ in (answer["data"] for answer in answers))
    (size,) = {answer["data"][1] for answer in answers}
    assert parts == sorted([*range(size)] * (len(answers) // size))
    assert {answer["sum_over_data"] for answer in answers} == {size * (size + 1) / 2}
    for part in range(size):
        counted = [answer["weight"] for answer in answers if answer["data"][0] == part]
        assert sorted(counted) == [*[0.0] * (len(counted) - 1), 1 / size]
