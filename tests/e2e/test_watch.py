"""`distsam watch` beside a run that trains, is killed and goes on, and of what is no run."""

import signal
import subprocess
import time
from pathlib import Path

import pytest
from command_line import LIMIT_S, alone, environment, invoke, run, small_config

ENDLESS = ["train.steps=1000000", "train.log_every=10", "train.checkpoint_every=50"]


def started(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        alone(*arguments), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for(path: Path) -> None:
    began = time.monotonic()
    while not path.exists() or not path.stat().st_size:
        assert time.monotonic() - began < LIMIT_S, f"{path} has not come"
        time.sleep(0.05)


def test_a_run_is_followed_until_it_is_killed_and_its_lock_is_free(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    training = started("train", small_config(tmp_path), f"run.dir={run_dir}", *ENDLESS)
    try:
        wait_for(run_dir / "checkpoints" / "step-00000050" / "contents.json")
        watching = started("watch", run_dir, "--every", 0.1)
        assert watching.stdout is not None
        lines = [watching.stdout.readline() for _ in range(3)]
        training.send_signal(signal.SIGKILL)
        training.wait(timeout=LIMIT_S)
        rest, _ = watching.communicate(timeout=LIMIT_S)
    finally:
        training.kill()
        training.communicate(timeout=LIMIT_S)
    for line in lines:
        assert f"{run_dir}: training  step " in line
        for words in (
            "/1000000 ",
            "steps/s",
            " left",
            "loss ",
            "validation r2 ",
            "norm deviation ",
            " holds ",
            "checkp",
        ):
            assert words in line
    steps = [int(line.split("  step ")[1].split("/")[0]) for line in lines]
    assert steps[0] < steps[1] < steps[2]
    assert f"{run_dir}: dead (no process holds the lock: process {training.pid} on " in rest.splitlines()[-1]
    assert watching.returncode == 0


def test_one_look_says_the_last_scores_without_loading_torch(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert invoke("train", small_config(tmp_path), f"run.dir={run_dir}", "train.alert_share=0.34").exit_code == 0
    (tmp_path / "torch.py").write_text("raise RuntimeError('loaded')\n")
    looked = run(alone("watch", run_dir, run_dir, "--once"), PYTHONPATH=f"{tmp_path}:{environment()['PYTHONPATH']}")
    assert (looked.returncode, looked.stderr) == (0, "")
    [line] = looked.stdout.splitlines()
    assert line.startswith(f"{run_dir}: over (ended by last step)  step 20/20  ")
    assert "  alerts " in line
    assert line.endswith("  checkpoint 20")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["none"], "none: no such folder; give the folder of a run"),
        (["."], ".: is no run folder, it has no config.yaml"),
        ([".", "--every", "0"], "--every: 0 is too short"),
        ([".", "--every", "nan"], "--every: nan is too short"),
    ],
)
def test_what_is_no_run_is_one_line_and_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke("watch", *arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"distsam: {says}")
    assert len(result.stderr.splitlines()) == 1
