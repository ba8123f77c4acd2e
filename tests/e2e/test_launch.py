"""launch/torchrun.sh ends as its ranks end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from command_line import LIMIT_S, ROOT, environment, run, small_config, torchrun

LAUNCH = str(ROOT / "launch" / "torchrun.sh")


def launcher_environment(**more: str) -> dict[str, str]:
    return environment(PYTHON=sys.executable, **({"NPROC": "2"} | more))


def test_a_config_that_cannot_be_used_ends_with_2_and_one_line(tmp_path: Path) -> None:
    command = [LAUNCH, str(small_config(tmp_path)), "optim.rh=0.1", f"run.dir={tmp_path}/run"]
    done = subprocess.run(
        command, env=launcher_environment(), capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "distsam: optim.rh: unknown key; did you mean optim.rho?\n"
    assert done.stdout == ""


def test_a_killed_rank_is_named_and_its_signal_is_the_exit_code(tmp_path: Path) -> None:
    command = [LAUNCH, str(small_config(tmp_path)), "train.steps=1000000", f"run.dir={tmp_path}/run"]
    launcher = subprocess.Popen(command, env=launcher_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        wait_until_it_trains(tmp_path / "run", launcher)
        os.kill(child_of(launcher.pid), signal.SIGKILL)
        _, stderr = launcher.communicate(timeout=LIMIT_S)
    finally:
        launcher.terminate()  # it ends its ranks first
        launcher.wait(LIMIT_S)
    assert launcher.returncode == 128 + signal.SIGKILL
    assert b"Signal 9 (SIGKILL) received" in stderr


def test_several_machines_need_a_place_to_meet() -> None:
    done = subprocess.run(
        [LAUNCH, "any.yaml"],
        env=launcher_environment(NNODES="2"),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode != 0
    assert "RDZV_ENDPOINT: set it to host:port of one of the 2 machines" in done.stderr


def wait_until_it_trains(run_dir: Path, launcher: "subprocess.Popen[bytes]") -> None:
    end_s = time.monotonic() + LIMIT_S
    while not (run_dir / "metrics.jsonl").exists():
        assert launcher.poll() is None, "the launcher ended before its ranks trained"
        assert time.monotonic() < end_s, "no metrics yet"
        time.sleep(0.1)


def child_of(pid: int) -> int:
    """The newest child: a rank, because the launcher became Python by exec."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[-1])


MEETING = """
import time
import torch
from distsam.sharding import close_world, open_world
from distsam.sharding.collectives import all_reduce_sum_

for turn in range(3):
    world = open_world("cpu")
    assert all_reduce_sum_(torch.ones(1)).item() == world.world_size
    time.sleep(0.5 * world.rank)
    close_world()
"""


def test_one_launch_may_hold_several_runs(tmp_path: Path) -> None:
    """The rank that was first in the second run met the address that the other had in the first, and both waited."""
    (tmp_path / "meeting.py").write_text(MEETING)
    done = run([*torchrun(), str(tmp_path / "meeting.py")])
    assert done.returncode == 0, done.stderr
