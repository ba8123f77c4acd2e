"""SIGKILL one rank at random moments, resume each time, and compare with a run that nobody touched.

    python tests/e2e/kill_and_resume.py [KILLS] [--ranks N] [--aimed SHARE] [--seed N] [--folder DIR] [--set KEY=VALUE]

A share of the kills is aimed at a checkpoint that is being written. A kill counts where the rank died of it. Prints
each, what it cost, how many fell between the first and the last step, and how many left an unfinished checkpoint;
exits with 1 where a run fails by itself, or unless the final parameters, optimizer state and best weights are the same
bits.
"""

import argparse
import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from command_line import LIMIT_S, assert_same_weights, environment, small_config, torchrun

from distsam.runs.checkpoints import UNFINISHED, finished_checkpoints
from distsam.runs.rows import read_rows

# One rank writes its process id before anything else, so that the moment of the kill may be any.
ENTRY = """
import os, pathlib
pathlib.Path(os.environ["PIDS"], os.environ.get("RANK", "0")).write_text(str(os.getpid()))
from distsam.cli import main
main()
"""
NUM_STEPS = 300
LENGTH = [f"train.steps={NUM_STEPS}", "train.checkpoint_every=10", "train.log_every=10", "sharding.plan=fsdp"]


# Longer than a checkpoint of the small run takes to be written.
WRITING_S = 0.03


@dataclass(frozen=True)
class Job:
    """What is run: on how many ranks, with which further keys."""

    num_ranks: int
    overrides: tuple[str, ...]


def command(folder: Path, run_dir: Path, of: Job) -> list[str]:
    (folder / "entry.py").write_text(ENTRY)
    train = ["train", str(small_config(folder)), f"run.dir={run_dir}", "train.resume=auto", *LENGTH, *of.overrides]
    launcher = [sys.executable] if of.num_ranks == 1 else torchrun(of.num_ranks)
    return [*launcher, str(folder / "entry.py"), *train]


def start(folder: Path, run_dir: Path, job: Job) -> subprocess.Popen[bytes]:
    pids = folder / "pids"
    pids.mkdir(parents=True, exist_ok=True)
    for old in pids.iterdir():
        old.unlink()
    # A file of its own each time: how the ranks ended is read from it.
    log = (folder / "log.txt").open("wb")
    return subprocess.Popen(
        command(folder, run_dir, job),
        env=environment(PIDS=str(pids)),
        stdout=log,
        stderr=log,
        start_new_session=True,
    )


def last_step(run_dir: Path) -> int:
    found = finished_checkpoints(run_dir / "checkpoints")
    return int(found[-1].name.removeprefix("step-")) if found else 0


def has_opened(run_dir: Path, began_s: float) -> bool:
    """Whether the run that was started at `began_s` takes steps: it has opened its metrics file."""
    metrics = run_dir / "metrics.jsonl"
    return metrics.exists() and metrics.stat().st_mtime > began_s


def wait_for_steps(process: subprocess.Popen[bytes], run_dir: Path) -> float | None:
    """Seconds until the run that was just started takes steps; None if it ends before."""
    began_s, began = time.time(), time.monotonic()
    while process.poll() is None:
        if has_opened(run_dir, began_s):
            return time.monotonic() - began
        time.sleep(0.01)
    return None


def unfinished(run_dir: Path) -> set[str]:
    """Names of the checkpoints that are being written, or that a kill has left so."""
    return {path.name for path in (run_dir / "checkpoints").glob(f"step-*{UNFINISHED}")}


def wait_for_writing(process: subprocess.Popen[bytes], run_dir: Path, num_seen: int) -> None:
    """Return when `num_seen` checkpoints more have begun to be written, or the run has ended."""
    seen: set[str] = set()
    while len(seen) < num_seen and process.poll() is None:
        seen |= unfinished(run_dir)


def kill(folder: Path, process: subprocess.Popen[bytes], rank: int) -> bool:
    """SIGKILL `rank`; True if it died of that, False if the run had ended well by then."""
    pid_file = folder / "pids" / str(rank)
    while process.poll() is None and not (pid_file.exists() and pid_file.read_text()):
        time.sleep(0.01)
    pid = pid_file.read_text() if pid_file.exists() else "0"
    with contextlib.suppress(ProcessLookupError):
        if process.poll() is None:
            os.kill(int(pid), signal.SIGKILL)
    if process.wait(LIMIT_S) == 0:
        return False
    # Alone it is the process itself; else torchrun says of whom it died.
    died_of_it = re.search(rf"exitcode\s*: -9 \(pid: {pid}\)", (folder / "log.txt").read_text())
    if process.returncode != -signal.SIGKILL and not died_of_it:
        fail(folder)
    return True


def fail(folder: Path) -> None:
    sys.exit(f"the run failed by itself; see {folder / 'log.txt'}:\n{(folder / 'log.txt').read_text()[-3000:]}")


def untouched(folder: Path, run_dir: Path, job: Job) -> tuple[float, float]:
    """Run to the end; the seconds until its first step, and from there."""
    process = start(folder, run_dir, job)
    startup_s = wait_for_steps(process, run_dir) or 0.0
    began = time.monotonic()
    if process.wait(300) != 0:
        fail(folder)
    return startup_s, time.monotonic() - began


@dataclass(frozen=True)
class Kill:
    """What a kill was, whether it fell between the first and the last step, and whether it cut a checkpoint short."""

    said: str
    is_in_loop: bool
    cut_a_checkpoint: bool


def one_kill(
    folder: Path, run_dir: Path, draw: random.Random, times_s: tuple[float, float], job: Job, aimed: float
) -> Kill | None:
    """Start or resume, and kill; None if it came too late. Three of four kills that are not aimed hit the training."""
    rank, is_aimed, in_training = draw.randrange(job.num_ranks), draw.random() < aimed, draw.random() < 0.75
    before = last_step(run_dir)
    began_s = time.time()
    process = start(folder, run_dir, job)
    startup_s = wait_for_steps(process, run_dir) if is_aimed or in_training else None
    if is_aimed:
        num_seen, delay_s = draw.randint(1, 4), draw.uniform(0, WRITING_S)
        wait_for_writing(process, run_dir, num_seen)
        moment = f"{1000 * delay_s:.0f} ms after checkpoint {num_seen} began to be written"
    elif in_training:
        delay_s = draw.uniform(0, times_s[1] * (1 - before / NUM_STEPS))
        moment = f"{delay_s:.2f} s into training"
    else:
        delay_s = draw.uniform(0, times_s[0])
        moment = f"{delay_s:.2f} s after its start"
    time.sleep(delay_s)
    if not kill(folder, process, rank):
        return None
    is_open = has_opened(run_dir, began_s)
    is_in_loop = is_open and last_step(run_dir) < NUM_STEPS
    # What a kill before has left is removed before the first step.
    cut = is_open and bool(unfinished(run_dir))
    place = "in the loop" if is_in_loop else "outside the loop"
    damage = ", cut a checkpoint short" if cut else ""
    recovery = "" if startup_s is None else f", trained {startup_s:.1f} s after its start"
    steps = f"last whole checkpoint {before} -> {last_step(run_dir)}"
    return Kill(f"rank {rank}, {moment}, {place}{damage}{recovery}; {steps}", is_in_loop, cut)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kills", type=int, nargs="?", default=20)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--aimed", type=float, default=0.5, help="share of the kills at a checkpoint being written")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a further key of the config")
    options = parser.parse_args()
    job = Job(options.ranks, tuple(options.set))
    seed = options.seed if options.seed is not None else random.randrange(10**6)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="kill_and_resume."))
    draw = random.Random(seed)
    print(f"seed {seed}, folder {folder}", flush=True)
    whole, killed = folder / "whole", folder / "killed"
    times_s = untouched(folder, whole, job)
    print(f"untouched: first step after {times_s[0]:.1f} s, then {times_s[1]:.1f} s", flush=True)
    kills: list[Kill] = []
    while len(kills) < options.kills:
        one = one_kill(folder, killed, draw, times_s, job, options.aimed)
        if one is not None:
            kills.append(one)
            print(f"kill {len(kills)}: {one.said}", flush=True)
        if last_step(killed) > 0.8 * NUM_STEPS and len(kills) < options.kills:
            # Ever less is left: the kills would pile up on the last steps.
            untouched(folder, killed, job)
            assert_same_weights(whole, killed)
            shutil.rmtree(killed)
            print("reached the end: same bits; starting anew", flush=True)
    startup_s, rest_s = untouched(folder, killed, job)
    assert_same_weights(whole, killed)
    steps = [row["train/step"] for row in read_rows(killed / "metrics.jsonl")]
    assert steps == sorted(set(steps)), "metrics.jsonl repeats or misorders steps"
    num_in_loop, num_cut = sum(one.is_in_loop for one in kills), sum(one.cut_a_checkpoint for one in kills)
    print(f"{len(kills)} kills of {options.ranks} ranks, {num_in_loop} in the loop, {num_cut} cut a checkpoint short")
    print(f"last resume: first step after {startup_s:.1f} s, end after {rest_s:.1f} s more")
    print("final parameters, optimizer state and best weights are the same bits")


if __name__ == "__main__":
    main()
