"""Which settings a search promotes and calls best, on folders made by hand."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from distsam.errors import InputError
from distsam.runs.study import StudyFolder
from distsam.train.config_file import load_config
from distsam.train.studies.tuning import Trial, Tuning
from distsam.train.studies.tuning_plan import plan_tuning

SMALL = """
data: {source: lowrank, equation: "ar,br,cr->abc", sizes: {a: 8, b: 6, c: 4, r: 2}, noise: 0.1, observed: 0.6}
network: {format: cp, bond_dim: 2}
optim: {method: base, base: adam, lr: 0.01}
train: {steps: 900, log_every: 10}
"""


@pytest.fixture
def search(tmp_path: Path) -> Tuning:
    (tmp_path / "small.yaml").write_text(SMALL)
    folder = StudyFolder(tmp_path / "search")
    over = {"optim.lr": "log:0.001:0.1"}
    plan_tuning(folder, load_config(tmp_path / "small.yaml"), over, minutes=10, num_seeds=1)
    return Tuning(folder)


def add(search: Tuning, index: int, scores: dict[int, float], diverged_at: int | None = None) -> None:
    """A setting that came to these scores after so many steps, its best until then."""
    values = {"optim.lr": 0.01 + index / 1000} if index else {}
    rung = search.rungs.index(diverged_at or max(scores))
    run = search.folder.path / "trials" / str(index) / "seed-0"
    run.mkdir(parents=True)
    (run.parent / "trial.json").write_text(json.dumps(asdict(Trial(index, values, values, rung))))
    rows = [{"train/step": step, "validation/r2": score} for step, score in scores.items()]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = {"steps": max(scores), "stopped_by": "last step", "validation/r2": scores[max(scores)]}
    (run / "summary.json").write_text(json.dumps(summary))
    if diverged_at is not None:
        (run / "diverged.json").write_text(json.dumps({"why": "inf", "steps": diverged_at}))


def promoted(search: Tuning) -> list[int]:
    """The settings that may go on now, in order: what a worker finds among what is to do."""
    jobs = search.todo()
    assert jobs is not None
    return [int(job.folder.parent.name) for job in jobs if job.steps > search.rungs[0]]


def test_settings_are_compared_after_equal_steps(search: Tuning):
    assert search.rungs == [100, 300, 900]
    # The first has 0.9 by now, but had 0.5 when it had done as many steps as the others.
    add(search, 0, {100: 0.5, 300: 0.7, 900: 0.9})
    for index, score in enumerate([0.3, 0.2, 0.1, 0.8], 1):
        add(search, index, {100: score})
    assert promoted(search) == [4]


def test_a_third_goes_on_and_no_more(search: Tuning):
    for index, score in enumerate([0.1, 0.6, 0.5, 0.3, 0.2, 0.4]):
        add(search, index, {100: score})
    assert promoted(search) == [1]
    trial = search.prepare(next(job for job in search.todo() or [] if job.folder.parent.name == "1"))
    assert trial.steps == 300  # it has been written down that it goes on
    assert [t.rung for t in search.trials()] == [0, 1, 0, 0, 0, 0]


def test_a_setting_that_diverged_is_never_the_best(search: Tuning):
    add(search, 0, {100: 0.9}, diverged_at=300)
    add(search, 1, {100: 0.3})
    assert [entry[0].index for entry in search.ranked()] == [1, 0]
    assert search.facts()["best"]["index"] == 1
    # What it came to before is still known: it was the best of its rung.
    assert search.result_at(search.trials()[0], 0) == 0.9


def test_where_all_diverged_there_is_no_best(search: Tuning):
    add(search, 0, {10: 0.1}, diverged_at=100)
    with pytest.raises(InputError, match="all 1 settings diverged"):
        search.facts()


def test_a_setting_that_cannot_be_trained_is_passed_over(search: Tuning):
    add(search, 0, {100: 0.9})
    add(search, 1, {100: 0.3})
    job = next(job for job in search.todo() or [] if job.folder.parent.name == "2")
    search.prepare(job)
    assert search.refuses(job, InputError("too large"))
    assert search.ranked()[-1][0].index == 2
    assert "too large" in (job.folder / "diverged.json").read_text()


def test_where_not_even_the_config_can_be_trained_the_search_ends(search: Tuning):
    job = (search.todo() or [])[0]
    assert job.folder.parent.name == "0"
    assert not search.refuses(search.prepare(job), InputError("no data"))


def test_a_search_without_any_run_says_so(search: Tuning):
    with pytest.raises(InputError, match="--minutes: 10 were too few for a single run"):
        search.facts()


@pytest.mark.parametrize(
    ("overrides", "rungs"),
    [
        ([], [100, 300, 900]),
        (["train.steps=100"], [11, 33, 100]),
        (["train.steps=30"], [10, 30]),  # a ninth would end before the first evaluation
        (["optim.schedule=cosine"], [900]),  # a course over all steps cannot be cut
        (["optim.warmup_steps=200"], [300, 900]),
        (["optim.method=sam", "optim.rho_warmup_steps=150"], [300, 900]),
    ],
)
def test_rungs_leave_room_for_warmups_and_evaluations(overrides: list[str], rungs: list[int], tmp_path: Path):
    (tmp_path / "small.yaml").write_text(SMALL)
    folder = StudyFolder(tmp_path / "search")
    plan_tuning(folder, load_config(tmp_path / "small.yaml", overrides), {}, minutes=1, num_seeds=2)
    assert Tuning(folder).rungs == rungs


@pytest.mark.parametrize(
    ("fixed", "varied"),
    [
        ([], {"network.size", "network.format", "optim.lr", "optim.weight_decay"}),
        (["optim.lr", "data.observed"], {"network.size", "network.format", "optim.weight_decay"}),
        (["network.bond_dim"], {"optim.lr", "optim.weight_decay"}),
    ],
)
def test_a_key_that_is_given_is_not_varied(fixed: list[str], varied: set[str], tmp_path: Path):
    (tmp_path / "small.yaml").write_text(SMALL)
    folder = StudyFolder(tmp_path / "search")
    plan_tuning(folder, load_config(tmp_path / "small.yaml"), {}, minutes=1, num_seeds=1, fixed=fixed)
    assert set(Tuning(folder).spaces) == varied


def test_where_every_key_is_given_nothing_is_left_to_search(tmp_path: Path):
    (tmp_path / "small.yaml").write_text(SMALL)
    fixed = ["network.format", "optim.lr", "optim.weight_decay"]
    config = load_config(tmp_path / "small.yaml")
    with pytest.raises(InputError, match="--over: every key of the default space is given"):
        plan_tuning(StudyFolder(tmp_path / "search"), config, {}, minutes=1, num_seeds=1, fixed=fixed)
