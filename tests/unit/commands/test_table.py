from distsam.commands.table import run_report, score_table
from distsam.runs.summary import SavedGoal, Summary

SCORES = {"train/rmse": 0.25, "train/r2": 0.5, "heldout/rmse": None, "heldout/r2": -2.0, "last/heldout/r2": 9.0}
GOAL = SavedGoal("heldout/r2", True, ("r2", "rmse"), (("held-out R2", "heldout/r2"), ("held-out RMSE", "heldout/rmse")))


def test_the_table_has_the_goals_columns_in_their_order_and_every_part() -> None:
    header, *lines = [line.split() for line in score_table(SCORES, GOAL.columns).splitlines()]
    assert header == ["r2", "rmse"]
    assert lines == [["train", "0.5", "0.25"], ["heldout", "-2", "-"]]


def test_without_a_goal_the_columns_are_those_that_are_found() -> None:
    assert score_table(SCORES).splitlines()[0].split() == ["rmse", "r2"]


def report_of(**more: object) -> list[str]:
    summary = Summary(steps=7, stopped_by="last step", best_step=5, weights="best", numbers=SCORES)
    for name, value in more.items():
        setattr(summary, name, value)
    return run_report(summary, "runs/a").splitlines()[5:]


def test_the_lines_that_the_goal_wants_to_be_seen_first_say_of_which_weights_they_are() -> None:
    assert report_of(goal=GOAL) == [
        "held-out R2     -2  (best weights, step 5)",
        "held-out RMSE   -",
        "steps           7  (ended by last step, 0.0 s)",
        "run folder      runs/a",
    ]


def test_a_goal_without_such_lines_shows_the_score_that_decides() -> None:
    goal = SavedGoal("heldout/r2", columns=("r2", "rmse"))
    assert report_of(goal=goal)[0] == "heldout/r2      -2  (best weights, step 5)"


def test_of_many_networks_the_largest_deviation_is_named() -> None:
    for count, expected in ((1, "0"), (3, "n.0 0, n.1 1, n.2 2"), (64, "63 in n.63, the largest of 64 networks")):
        numbers = {**SCORES, **{f"balance/n.{i}/norm_deviation": float(i) for i in range(count)}}
        assert f"norm deviation  {expected}  (last step)" in report_of(goal=GOAL, numbers=numbers)


def test_a_summary_without_a_goal_has_no_table() -> None:
    summary = Summary(steps=7, stopped_by="last step", numbers=SCORES)
    assert [line.split()[0] for line in run_report(summary, "runs/a").splitlines()] == ["steps", "run"]
