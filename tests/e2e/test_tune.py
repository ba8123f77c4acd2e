"""A search in subprocesses: its best config trains, a kill loses nothing, and what cannot be searched is said."""

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from command_line import LIMIT_S, alone, environment, invoke, small_config

FEW = ["--minutes", "5", "--trials", "6"]


def result_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "tune.json").read_text()))


def without_times(result: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in result.items() if key != "minutes"}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    done = invoke("tune", small_config(folder), *FEW, "train.steps=90", "-o", folder / "search")
    assert done.exit_code == 0, done.output
    (folder / "output.txt").write_text(done.output)
    return folder


def test_settings_are_halved_and_the_best_went_furthest(undisturbed: Path):
    result = result_of(undisturbed / "search")
    assert result["steps"] == [10, 30, 90]
    assert len(result["trials"]) == 6
    at_rung = [sum(trial["rung"] >= rung for trial in result["trials"]) for rung in range(3)]
    assert at_rung[0] == 6
    assert 2 <= at_rung[1] <= 4  # a third of six, and those that were among the best of fewer before
    assert result["best"]["rung"] == max(trial["rung"] for trial in result["trials"])
    goals = [trial["goal"] for trial in result["trials"] if trial["rung"] == result["best"]["rung"]]
    assert goals == sorted(goals, reverse=True)


def test_the_best_config_trains_to_the_score_that_was_found(undisturbed: Path, tmp_path: Path):
    search = undisturbed / "search"
    found = json.loads((search / result_of(search)["best"]["runs"][0] / "summary.json").read_text())
    # As far as the search went with it: best.yaml itself asks for all steps.
    more = [f"train.steps={found['steps']}", f"run.dir={tmp_path}/best", "train.num_threads=1"]
    done = invoke("train", search / "best.yaml", *more)
    assert done.exit_code == 0, done.output
    again = json.loads((tmp_path / "best" / "summary.json").read_text())
    assert again["validation/r2"] == found["validation/r2"]
    assert (search / "tune.png").stat().st_size > 10_000


def test_the_first_setting_is_the_config_as_it_is(undisturbed: Path):
    first = next(trial for trial in result_of(undisturbed / "search")["trials"] if trial["index"] == 0)
    assert first["settings"] == {}
    assert "the config as it is" in (undisturbed / "output.txt").read_text()


def test_a_search_that_was_killed_finds_the_same(undisturbed: Path, tmp_path: Path):
    command = alone("tune", small_config(tmp_path), *FEW, "train.steps=90", "-o", tmp_path / "search")
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(4):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    again = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert again.returncode == 0, again.stderr
    assert without_times(result_of(tmp_path / "search")) == without_times(result_of(undisturbed / "search"))


def test_given_keys_alone_are_varied(tmp_path: Path):
    over = ["--over", "optim.lr=log:0.01:0.1", "--over", "network.bond_dim=1,2"]
    done = invoke("tune", small_config(tmp_path), *over, "--minutes", "5", "--trials", "3", "-o", tmp_path / "search")
    assert done.exit_code == 0, done.output
    settings = [trial["settings"] for trial in result_of(tmp_path / "search")["trials"]]
    assert {frozenset(setting) for setting in settings if setting} == {frozenset(("optim.lr", "network.bond_dim"))}


def test_the_time_ends_a_search(tmp_path: Path):
    done = invoke("tune", small_config(tmp_path), "train.steps=1000000", "--minutes", "0.05", "-o", tmp_path / "search")
    assert done.exit_code == 0, done.output
    assert result_of(tmp_path / "search")["minutes"] < 1


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (["--minutes", "0"], "--minutes: 0 is no time"),
        (["--seeds", "0"], "--seeds: 0 is too few"),
        (["--trials", "0"], "--trials: 0 is too few"),
        (["--over", "optim.lr"], "--over: 'optim.lr' is no space of a key"),
        (["--over", "optim.lr=log:0:1"], "begins at 0"),
        (["--over", "optim.lrr=log:0.1:1"], "--over: optim.lrr"),
        (["--over", "network.bond_dim=linear:1:2"], "--over: network.bond_dim"),
        (["data.validation=0"], "data.validation: 0 leaves no entries to choose"),
    ],
)
def test_what_cannot_be_searched_is_one_line(more: list[str], problem: str, tmp_path: Path):
    done = invoke("tune", small_config(tmp_path), "-o", tmp_path / "search", *more)
    assert done.exit_code == 2
    assert problem in done.output
    assert done.output.count("\n") == 1
    assert not (tmp_path / "search").exists()
