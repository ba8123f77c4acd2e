"""A comparison in subprocesses: killed and resumed, by one worker and by two, and given what cannot be compared."""

import json
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from command_line import LIMIT_S, alone, environment, invoke, small_config

ARMS = ["--arms", "base,sam,das,wd", "--seeds", "3", "--trials", "2", "--tuning-seeds", "1"]


def arguments(folder: Path, name: str, *more: str) -> list[str]:
    return ["compare", str(small_config(folder)), *ARMS, "-o", str(folder / name), *more]


def result_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "compare.json").read_text()))


def without_times(result: dict[str, Any]) -> dict[str, Any]:
    timed = ("step_s", "target_s")
    arms = {name: {k: v for k, v in arm.items() if k not in timed} for name, arm in result["arms"].items()}
    return {**result, "arms": arms}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    folder = tmp_path_factory.mktemp("undisturbed")
    done = invoke(*arguments(folder, "cmp"))
    assert done.exit_code == 0, done.output
    return result_of(folder / "cmp"), done.output


def test_a_comparison_ends_in_a_table_and_a_sentence(undisturbed: tuple[dict[str, Any], str]):
    result, output = undisturbed
    assert list(result["arms"]) == ["base", "sam", "das", "wd"]
    assert all(len(arm["scores"]) == 3 and arm["interval"] is not None for arm in result["arms"].values())
    assert [len(arm["trials"]) for arm in result["arms"].values()] == [2, 2, 2, 2]
    assert set(result["seeds"]).isdisjoint(result["tuning_seeds"])
    assert result["verdict"] in output
    # 4 arms of 2 trials on 1 seed, and 4 of 3 seeds.
    assert "[20/20]" in output


@pytest.mark.soak
def test_a_comparison_killed_twice_says_the_same(undisturbed: tuple[dict[str, Any], str], tmp_path: Path):
    command = alone(*arguments(tmp_path, "cmp", "--workers", "2"))
    rng = random.Random(0)
    for _ in range(2):
        with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for _ in range(rng.randint(1, 6)):
                process.stdout.readline()  # so many runs have ended
            time.sleep(rng.random() / 4)
            process.send_signal(signal.SIGKILL)
            process.stdout.read()  # until its workers are gone too: they hold the pipe
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=LIMIT_S, check=True)
    assert without_times(result_of(tmp_path / "cmp")) == without_times(undisturbed[0])
    assert undisturbed[0]["verdict"] in done.stdout


def test_a_comparison_that_is_over_is_shown_again(tmp_path: Path):
    few = ["--seeds", "1", "--trials", "1", "--tuning-seeds", "1"]
    command = ["compare", str(small_config(tmp_path)), "--arms", "base,sam", *few, "-o", str(tmp_path / "cmp")]
    assert invoke(*command).exit_code == 0
    again = invoke("work", tmp_path / "cmp")
    assert again.exit_code == 0
    assert "One seed says nothing of chance" in again.output
    assert "[" not in again.output.partition("arm ")[0]  # no run was done again


def test_an_equal_number_of_gradients_gives_sam_half_the_steps(tmp_path: Path):
    few = ["--seeds", "1", "--trials", "1", "--tuning-seeds", "1", "--budget", "gradients"]
    command = ["compare", str(small_config(tmp_path)), "--arms", "base,sam", *few, "-o", str(tmp_path / "cmp")]
    assert invoke(*command).exit_code == 0
    steps = {
        arm: json.loads((tmp_path / "cmp" / "runs" / arm / "seed-0" / "summary.json").read_text())["steps"]
        for arm in ("base", "sam")
    }
    assert steps == {"base": 20, "sam": 10}


def test_a_budget_in_seconds_ends_every_run_by_the_clock(tmp_path: Path):
    few = ["--seeds", "1", "--trials", "1", "--tuning-seeds", "1", "--budget", "seconds=0.2"]
    command = ["compare", str(small_config(tmp_path)), "--arms", "base,sam", *few, "-o", str(tmp_path / "cmp")]
    assert invoke(*command).exit_code == 0
    for arm in ("base", "sam"):
        summary = json.loads((tmp_path / "cmp" / "runs" / arm / "seed-0" / "summary.json").read_text())
        assert summary["stopped_by"] == "time limit"
        assert summary["wall_s"] >= 0.2


def test_an_arm_that_diverges_is_said_not_hidden(tmp_path: Path):
    # Steps of 1e30 overflow at once; the other arm is not held up by it.
    (tmp_path / "arms.yaml").write_text("wild: {set: {optim.lr: 1.0e+300, optim.base: sgd, optim.method: base}}\n")
    few = ["--seeds", "2", "--trials", "1", "--tuning-seeds", "1", "--arms-file", str(tmp_path / "arms.yaml")]
    command = ["compare", str(small_config(tmp_path)), "--arms", "base,wild", *few, "-o", str(tmp_path / "cmp")]
    done = invoke(*command)
    assert done.exit_code == 0, done.output
    assert "note: wild: no heldout/r2 for seed 0, 1 (diverged" in done.output


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (["--arms", "base,smm"], "--arms: 'smm' is no arm; did you mean sam?"),
        (["--arms", "base"], "is no comparison"),
        (["--seeds", "0"], "--seeds: 0 is too few"),
        (["--workers", "0"], "--workers: 0 is too few"),
        (["--budget", "hours=3"], "--budget: 'hours=3' is no budget"),
        (["--budget", "seconds"], "--budget: 'seconds' is no budget"),
        (["--budget", "steps=-1"], "is no number of steps"),
        (["--arms-file", "none.yaml"], "none.yaml: no such config file"),
        (["data.validation=0"], "data.validation: 0 leaves no entries to choose settings by"),
        (["--score", "heldout/r3"], "--score: 'heldout/r3' is no score of this task; there are "),
        (["--budget", "seconds=1", "optim.schedule=cosine"], "--budget: seconds: optim.schedule=cosine needs a number"),
        (["--slurm", "2"], "--slurm: there is no sbatch here"),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    more: list[str], problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PATH", str(tmp_path))  # no sbatch
    done = invoke("compare", small_config(tmp_path), "-o", tmp_path / "cmp", *more)
    assert done.exit_code == 2
    assert problem in done.output
    assert done.output.count("\n") == 1
    assert "Traceback" not in done.output


def test_a_folder_of_another_comparison_is_refused(tmp_path: Path):
    folder = tmp_path / "cmp"
    few = ["--seeds", "1", "--trials", "1", "--tuning-seeds", "1", "-o", folder]
    assert invoke("compare", small_config(tmp_path), "--arms", "base,sam", *few).exit_code == 0
    other = invoke("compare", small_config(tmp_path), "--arms", "base,das", *few)
    assert other.exit_code == 2
    assert "holds another study, of which arms is otherwise" in other.output
    config = invoke("compare", small_config(tmp_path), "optim.lr=0.02", "--arms", "config,base", *few)
    assert config.exit_code == 2


def test_a_kill_before_the_plan_was_written_is_no_obstacle(tmp_path: Path):
    (tmp_path / "cmp" / "claims").mkdir(parents=True)
    (tmp_path / "cmp" / ".0123456789abcdef.tmp").write_text("half")
    few = ["--seeds", "1", "--trials", "1", "--tuning-seeds", "1"]
    done = invoke("compare", small_config(tmp_path), "--arms", "base,sam", *few, "-o", tmp_path / "cmp")
    assert done.exit_code == 0, done.output


def test_a_bad_value_of_an_arm_is_said_before_any_run(tmp_path: Path):
    (tmp_path / "arms.yaml").write_text("mine: {tune: {optim.lr: '0.1,-1'}}\n")
    more = ["--arms", "base,mine", "--arms-file", tmp_path / "arms.yaml", "--trials", "2"]
    done = invoke("compare", small_config(tmp_path), *more, "-o", tmp_path / "cmp")
    assert done.exit_code == 2
    assert done.output.startswith("distsam: arm mine: optim.lr: -1")
    assert not (tmp_path / "cmp").exists()


def test_a_folder_of_somebody_elses_is_left_alone(tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    done = invoke("compare", small_config(tmp_path), "--arms", "base,sam", "-o", tmp_path / "mine")
    assert done.exit_code == 2
    assert "is not empty and holds no study" in done.output
