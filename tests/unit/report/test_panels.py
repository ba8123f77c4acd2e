"""Panels are planned from the keys that the rows of a run have."""

from distsam.report.panels import planned_sections
from distsam.runs.summary import SavedGoal

ROW = {
    "train/step": 1,
    "train/loss": 0.5,
    "validation/r2": 0.5,
    "train/r2": 0.75,
    "validation/rmse": None,
    "balance/a/norm_deviation": 1.0,
    "balance/a/core_norm_sq/left": 1.0,
    "balance/a/core_norm_sq/right": 2.0,
    "balance/a/predicted_rate": None,
    "balance/a/measured_rate": 0.0,
    "balance/b/norm_deviation": 2.0,
    "balance/b/core_norm_sq/only": 3.0,
}


def test_a_line_is_there_for_every_key_that_has_numbers_and_for_no_other() -> None:
    sections = planned_sections([ROW], SavedGoal("validation/r2", True, ("r2", "rmse")))
    found = {name: [panel.keys for panel in panels] for name, panels in sections.items()}
    assert found == {
        "Scores": [("validation/r2", "train/r2"), ("train/loss",)],
        "Norm deviation": [("balance/a/norm_deviation", "balance/b/norm_deviation")],
        "Core norms": [
            ("balance/a/core_norm_sq/left", "balance/a/core_norm_sq/right"),
            ("balance/b/core_norm_sq/only",),
        ],
        "Rates": [("balance/a/measured_rate",)],
    }


def test_without_a_goal_the_score_of_the_rows_is_shown_and_without_rows_nothing() -> None:
    assert planned_sections([ROW], None)["Scores"][0].keys == ("validation/r2", "train/r2")
    assert planned_sections([], None) == {}
