"""SIGKILL one of two ranks at random moments, resume each time, and compare with a run that nobody touched.

    python tests/e2e/kill_and_resume.py [KILLS] [--seed N] [--folder DIR]

Prints every kill and what it cost; exits with 1 unless the final parameters, optimizer state and best weights are
the same bits.
"""

import argparse
import contextlib
import os
import random
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
LENGTH = ["train.steps=200", "train.checkpoint_every=10", "train.log_every=10", "sharding.plan=fsdp"]


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


def kill_one_rank(folder: Path, process: subprocess.Popen[bytes], rank: int, delay_s: float) -> bool:
    """SIGKILL `rank` after `delay_s`; False if the run had ended by then."""
    pid_file = folder / "pids" / str(rank)
    while not pid_file.exists() or not pid_file.read_text():
        time.sleep(0.01)
    time.sleep(delay_s)
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(pid_file.read_text()), signal.SIGKILL)
    return process.wait(60) != 0


def untouched(folder: Path, run_dir: Path) -> float:
    """Run to the end; the seconds it took."""
    began = time.monotonic()
    process = start(folder, run_dir)
    if process.wait(300) != 0:
        sys.exit(f"the run failed; see {folder / 'log.txt'}:\n{(folder / 'log.txt').read_text()[-3000:]}")
    return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kills", type=int, nargs="?", default=20)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.randrange(10**6)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="kill_and_resume."))
    draw = random.Random(seed)
    print(f"seed {seed}, folder {folder}", flush=True)
    whole, killed = folder / "whole", folder / "killed"
    duration_s = untouched(folder, whole)
    print(f"untouched: {duration_s:.1f} s", flush=True)
    count = 0
    while count < options.kills:
        rank, delay_s = draw.randrange(2), draw.uniform(0, duration_s)
        before = last_step(killed)
        if not kill_one_rank(folder, start(folder, killed), rank, delay_s):
            # The end was reached before the moment came: begin anew, with the kills that are left.
            assert_same_weights(whole, killed)
            subprocess.run(["rm", "-r", str(killed)], check=True)
            print("reached the end, same bits; starting anew", flush=True)
            continue
        count += 1
        print(
            f"kill {count}: rank {rank} after {delay_s:.1f} s; steps saved {before} -> {last_step(killed)}", flush=True
        )
    recovery_s = untouched(folder, killed)
    assert_same_weights(whole, killed)
    steps = [row["train/step"] for row in read_rows(killed / "metrics.jsonl")]
    assert steps == sorted(set(steps)), "metrics.jsonl repeats or misorders steps"
    print(
        f"{count} kills, last recovery {recovery_s:.1f} s: final parameters, state and best weights are the same bits"
    )


if __name__ == "__main__":
    main()
