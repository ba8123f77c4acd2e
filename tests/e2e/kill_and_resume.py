"""SIGKILL one of two ranks at random moments, resume each time, and compare with a run that nobody touched.

    python tests/e2e/kill_and_resume.py [KILLS] [--seed N] [--folder DIR]

Prints every kill and what it cost; exits with 1 unless the final parameters, optimizer state and best weights are
the same bits.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from command_line import assert_same_weights, environment, small_config

from distsam.train.checkpoint import finished_checkpoints
from distsam.train.tracking import read_rows

# One rank writes its process id before anything else, so that the moment of the kill may be any.
ENTRY = """
import os, pathlib
pathlib.Path(os.environ["PIDS"], os.environ["RANK"]).write_text(str(os.getpid()))
from distsam.cli import main
main()
"""
NUM_STEPS = 300
LENGTH = [f"train.steps={NUM_STEPS}", "train.checkpoint_every=10", "train.log_every=10", "sharding.plan=fsdp"]


def command(folder: Path, run_dir: Path) -> list[str]:
    (folder / "entry.py").write_text(ENTRY)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    job = ["train", str(small_config(folder)), f"run.dir={run_dir}", "train.resume=auto", *LENGTH]
    return [*torchrun, str(folder / "entry.py"), *job]


def start(folder: Path, run_dir: Path) -> subprocess.Popen[bytes]:
    pids = folder / "pids"
    pids.mkdir(exist_ok=True)
    for old in pids.iterdir():
        old.unlink()
    log = (folder / "log.txt").open("ab")
    return subprocess.Popen(
        command(folder, run_dir), env=environment(PIDS=str(pids)), stdout=log, stderr=log, start_new_session=True
    )


def last_step(run_dir: Path) -> int:
    found = finished_checkpoints(run_dir / "checkpoints")
    return int(found[-1].name.removeprefix("step-")) if found else 0


def wait_for_steps(process: subprocess.Popen[bytes], run_dir: Path) -> float | None:
    """Seconds until the run that was just started takes steps (opens its metrics file); None if it ends before."""
    began_s, began = time.time(), time.monotonic()
    metrics = run_dir / "metrics.jsonl"
    while process.poll() is None:
        if metrics.exists() and metrics.stat().st_mtime > began_s:
            return time.monotonic() - began
        time.sleep(0.01)
    return None


def kill(folder: Path, process: subprocess.Popen[bytes], rank: int) -> bool:
    """SIGKILL `rank`; False if the run had ended well by then."""
    pid_file = folder / "pids" / str(rank)
    while process.poll() is None and not (pid_file.exists() and pid_file.read_text()):
        time.sleep(0.01)
    with contextlib.suppress(ProcessLookupError):
        if process.poll() is None:
            os.kill(int(pid_file.read_text()), signal.SIGKILL)
    return process.wait(60) != 0


def untouched(folder: Path, run_dir: Path) -> tuple[float, float]:
    """Run to the end; the seconds until its first step, and from there."""
    process = start(folder, run_dir)
    startup_s = wait_for_steps(process, run_dir) or 0.0
    began = time.monotonic()
    if process.wait(300) != 0:
        sys.exit(f"the run failed; see {folder / 'log.txt'}:\n{(folder / 'log.txt').read_text()[-3000:]}")
    return startup_s, time.monotonic() - began


def one_kill(folder: Path, run_dir: Path, draw: random.Random, times_s: tuple[float, float]) -> str | None:
    """Start or resume, kill at a random moment, three times of four while it trains; None if it came too late."""
    rank, in_training = draw.randrange(2), draw.random() < 0.75
    before = last_step(run_dir)
    delay_s = draw.uniform(0, times_s[1] * (1 - before / NUM_STEPS) if in_training else times_s[0])
    process = start(folder, run_dir)
    startup_s = wait_for_steps(process, run_dir) if in_training else None
    time.sleep(delay_s)
    if not kill(folder, process, rank):
        return None
    moment = f"{delay_s:.2f} s into training" if in_training else f"{delay_s:.2f} s after its start"
    recovery = "" if startup_s is None else f", trained {startup_s:.1f} s after its start"
    return f"rank {rank}, {moment}{recovery}; last whole checkpoint {before} -> {last_step(run_dir)}"


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kills", type=int, nargs="?", default=20)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.randrange(10**6)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="kill_and_resume."))
    draw = random.Random(seed)
    print(f"seed {seed}, folder {folder}", flush=True)
    whole, killed = folder / "whole", folder / "killed"
    times_s = untouched(folder, whole)
    print(f"untouched: first step after {times_s[0]:.1f} s, then {times_s[1]:.1f} s", flush=True)
    count = 0
    while count < options.kills:
        said = one_kill(folder, killed, draw, times_s)
        if said is not None:
            count += 1
            print(f"kill {count}: {said}", flush=True)
        if last_step(killed) == NUM_STEPS and count < options.kills:
            # No step is left that a kill could undo.
            untouched(folder, killed)
            assert_same_weights(whole, killed)
            shutil.rmtree(killed)
            print("reached the end: same bits; starting anew", flush=True)
    startup_s, rest_s = untouched(folder, killed)
    assert_same_weights(whole, killed)
    steps = [row["train/step"] for row in read_rows(killed / "metrics.jsonl")]
    assert steps == sorted(set(steps)), "metrics.jsonl repeats or misorders steps"
    print(f"{count} kills; last resume: first step after {startup_s:.1f} s, end after {rest_s:.1f} s more")
    print("final parameters, optimizer state and best weights are the same bits")


if __name__ == "__main__":
    main()
