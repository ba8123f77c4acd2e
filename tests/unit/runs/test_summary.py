import json
from pathlib import Path

import pytest

from distsam.runs.summary import SavedGoal, SavedNetwork, Summary, read_summary, score_parts

GOAL = SavedGoal("validation/r2", True, ("r2", "rmse"), (("held-out R2", "heldout/r2"),))
NETWORK = SavedNetwork("tucker", (4, 5), ("central", "factor_0"), 29)


def test_a_summary_is_read_as_it_was_written_but_for_what_is_not_finite(tmp_path: Path) -> None:
    file = tmp_path / "summary.json"
    numbers = {"heldout/r2": float("nan"), "balance/a.b/norm_deviation": 2.0}
    written = Summary(3, 1.5, "last step", "best", 2, GOAL, {"a.b": NETWORK}, numbers, {"device": "cpu"})
    written.write(file)
    written.numbers["heldout/r2"] = None
    assert read_summary(file) == written


def test_the_file_is_flat(tmp_path: Path) -> None:
    Summary(3, goal=GOAL, networks={"n": NETWORK}, numbers={"heldout/r2": 0.5}).write(tmp_path / "summary.json")
    content = json.loads((tmp_path / "summary.json").read_text())
    assert (content["steps"], content["heldout/r2"], content["best_step"]) == (3, 0.5, None)
    assert content["goal"]["key"] == "validation/r2"
    assert content["networks"]["n"]["core_names"] == ["central", "factor_0"]


def test_what_is_not_known_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "summary.json"
    file.write_text(json.dumps({"steps": 3, "heldout/r2": 0.5, "from_the_future": {"x": [1]}, "core_names": {}}))
    summary = read_summary(file)
    assert summary is not None
    assert (summary.steps, summary.goal, summary.networks) == (3, None, {})
    assert summary.more == {"from_the_future": {"x": [1]}, "core_names": {}}
    summary.write(file)
    assert json.loads(file.read_text()).items() >= {"from_the_future": {"x": [1]}, "heldout/r2": 0.5}.items()


@pytest.mark.parametrize(
    "content", [None, "", "[]", "\ud800", json.dumps({"steps": 2}), json.dumps({}), '{"steps": 3, "goal": "r2"}']
)
def test_no_summary_of_this_step_is_none(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "summary.json"
    if content is not None:
        file.write_bytes(content.encode("utf-8", "surrogatepass"))
    assert read_summary(file, {"steps": 3}) is None


def test_parts_are_those_that_have_a_wanted_score() -> None:
    keys = ["train/r2", "train/loss", "heldout/r2", "last/heldout/r2", "balance/n/norm_deviation", "steps", "sam/rmse2"]
    assert score_parts(keys, ["r2", "rmse"]) == ["train", "heldout"]
