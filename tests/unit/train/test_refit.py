"""The second fit: its config, its folder, and how its scores come into the summary."""

from pathlib import Path
from typing import Any

import pytest

from distsam.errors import InputError
from distsam.runs.folder import RunFolder
from distsam.runs.summary import SavedGoal, Summary
from distsam.train.config import Config, validate
from distsam.train.config_file import to_yaml
from distsam.train.refit import merged, plan_refit

GOAL = SavedGoal("validation/r2", columns=("r2",))


def config_of(folder: Path, **sections: Any) -> Config:
    raw = {
        "run": {"dir": str(folder)},
        "data": {"source": "il2"},
        "network": {"format": "cp", "bond_dim": 2},
        "optim": {"method": "base"},
        "train": {"steps": 50, "early_stopping": 3, "refit": True},
    }
    return validate({**raw, **{name: {**raw.get(name, {}), **keys} for name, keys in sections.items()}})


def ended(best_step: int | None = 20, stopped_by: str = "early stopping") -> Summary:
    return Summary(steps=50, stopped_by=stopped_by, weights="best", best_step=best_step, goal=GOAL)


def test_it_takes_all_that_is_observed_for_the_steps_that_were_best(tmp_path: Path) -> None:
    again = plan_refit(config_of(tmp_path), ended(), is_whole=True, is_first=True)
    assert again is not None
    assert again.run.dir == str(tmp_path / "refit")
    assert again.model_dump()["data"]["validation"] == 0
    assert (again.train.steps, again.train.early_stopping, again.train.refit) == (20, None, False)
    # What was drawn stays: the same entries are held out.
    assert again.run.seed == config_of(tmp_path).run.seed
    assert again.model_dump()["data"]["observed"] == 0.8


def test_a_warm_up_ends_within_it(tmp_path: Path) -> None:
    # A config with a longer warm-up than steps is refused, and evaluate reads that of the second fit.
    config = config_of(tmp_path, optim={"warmup_steps": 30})
    again = plan_refit(config, ended(best_step=20), is_whole=True, is_first=True)
    assert again is not None
    assert again.optim.warmup_steps == 19


@pytest.mark.parametrize(
    ("summary", "is_whole"),
    [(ended(stopped_by="SIGTERM"), True), (ended(), False), (ended(best_step=None), True)],
    ids=["ended by a signal", "not all written", "no weights were best"],
)
def test_a_first_fit_that_is_not_whole_has_none(summary: Summary, is_whole: bool, tmp_path: Path) -> None:
    assert plan_refit(config_of(tmp_path), summary, is_whole, is_first=True) is None


def test_its_folder_is_kept_unless_it_is_of_other_steps_or_rates(tmp_path: Path) -> None:
    again = plan_refit(config_of(tmp_path), ended(), is_whole=True, is_first=True)
    assert again is not None
    folder = RunFolder(tmp_path / "refit")
    for best_step, lr, stays in ((20, 1e-3, True), (30, 1e-3, False), (20, 2e-3, False)):
        folder.path.mkdir(exist_ok=True)
        folder.write_config(to_yaml(again))
        plan_refit(config_of(tmp_path, optim={"lr": lr}), ended(best_step), is_whole=True, is_first=True)
        assert folder.path.exists() == stays, (best_step, lr)
    assert not list(tmp_path.glob("refit*"))


def test_what_a_kill_left_of_its_removal_goes_too(tmp_path: Path) -> None:
    (tmp_path / "refit.old" / "checkpoints").mkdir(parents=True)
    assert plan_refit(config_of(tmp_path), ended(), is_whole=True, is_first=True) is not None
    assert not (tmp_path / "refit.old").exists()


def test_the_summary_has_the_new_scores_and_keeps_those_that_chose() -> None:
    first = ended()
    first.numbers = {"validation/r2": 0.5, "heldout/r2": 0.4, "last/heldout/r2": 0.1, "balance/network/covariance": 3.0}
    again = Summary(steps=20, numbers={"validation/r2": None, "heldout/r2": 0.45}, wall_s=2.0)
    once = merged(first, again)
    assert once.numbers == {
        "validation/r2": None,
        "heldout/r2": 0.45,
        "before_refit/validation/r2": 0.5,
        "before_refit/heldout/r2": 0.4,
    }
    assert (once.weights, once.best_step, once.steps) == ("refit", 20, 50)
    # A run that is started again when all is done merges once more.
    assert merged(once, again) == once


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"data": {"validation": 0.0}, "train": {"early_stopping": None}}, "train.refit: true needs data.validation"),
        ({"train": {"refit": 1}}, "train.refit: 1 is not valid; must be true or false"),
    ],
)
def test_a_refit_that_cannot_be_is_refused(sections: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        config_of(tmp_path, **sections)
    assert str(refused.value).startswith(message)


def test_a_task_of_ones_own_has_none() -> None:
    raw = {"task": {"target": "mine:Task"}, "train": {"steps": 1, "refit": True}}
    with pytest.raises(InputError, match=r"train.refit: true is not known for task.kind=target"):
        validate(raw)
