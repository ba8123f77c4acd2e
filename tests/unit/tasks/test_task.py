"""The goal of a task, and an error that is said anew under the caller's name."""

import pytest

from distsam import Goal
from distsam.errors import ArgumentError, renaming


@pytest.mark.parametrize("key", ["r2", "validation/", "/r2", "validation/mse", 3])
def test_a_goal_that_is_no_part_and_column_is_refused(key: str) -> None:
    with pytest.raises(ArgumentError, match=r"^key: is .*'<part>/<column>' with one of \('r2', 'rmse'\)"):
        Goal(key, True, ("r2", "rmse"))


def test_a_goal_knows_what_is_better_and_nan_never_is() -> None:
    highest, lowest = Goal("validation/r2", True, ("r2",)), Goal("test/a/rmse", False, ("rmse",))
    assert highest.is_better(2.0, than=1.0)
    assert not highest.is_better(1.0, than=1.0)
    assert lowest.is_better(1.0, than=2.0)
    nan = float("nan")
    assert not any(goal.is_better(*pair) for goal in (highest, lowest) for pair in ((nan, 1.0), (1.0, nan)))
    assert (highest.column, lowest.column) == ("r2", "rmse")


def test_a_goal_from_lists_is_that_from_tuples_and_a_key_of_a_dict() -> None:
    listed = Goal("v/r2", True, ["r2"], [["R2", "v/r2"]])  # type: ignore[arg-type]
    assert {listed: 1}[Goal("v/r2", True, ("r2",), (("R2", "v/r2"),))] == 1


@pytest.mark.parametrize(
    ("argument", "expected"), [("norms", "init_norms"), ("norms[1]", "init_norms[1]"), ("normsy", "normsy")]
)
def test_an_argument_is_renamed_with_its_index_and_no_other(argument: str, expected: str) -> None:
    with pytest.raises(ArgumentError) as caught, renaming({"norms": "init_norms"}):
        raise ArgumentError(argument, "is wrong")
    assert (caught.value.argument, str(caught.value)) == (expected, f"{expected}: is wrong")
