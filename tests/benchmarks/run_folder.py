"""What the checksums of checkpoints and the lock of the run folder cost: the quickstart, a checkpoint every 100 steps.

    OMP_NUM_THREADS=1 python tests/benchmarks/run_folder.py [--rounds 5] [--limit 0.02]
    OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node 2 tests/benchmarks/run_folder.py --folder /tmp/here

Two answers. `in them`: the seconds that the run spends in taking checksums and in the lock, by the clock, over the
seconds of the whole run; much of it is beside the training, in the thread that writes. The small files that hold the
checksums are not in it.
`with / without`: the ratio of whole runs with both and with neither, which take turns; the median over rounds, which
on a shared machine scatters by more than what is measured. With --limit the exit code is 1 if `in them` is above it.
"""

import argparse
import contextlib
import io
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import distsam.runs.checkpoints
import distsam.runs.folder
import distsam.train.checkpoint
from distsam.runs.lock import RunLock
from distsam.train.config_file import load_config
from distsam.train.run import run_training

CONFIG = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
USERS_OF_CHECKSUMS = (distsam.runs.checkpoints, distsam.train.checkpoint)


class Clock:
    """Adds up the seconds inside functions."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timing(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - began

        return timing


class NoLock:
    """A lock that locks nothing."""

    def __init__(self, path: Path) -> None: ...

    def is_held(self) -> bool:
        """Always: nobody else is here."""
        return True

    def release(self) -> None: ...


@contextmanager
def measured(clock: Clock) -> Iterator[None]:
    """Time everything that takes checksums or belongs to the lock."""
    with contextlib.ExitStack() as stack:
        timed = clock.timed(distsam.runs.checkpoints.sha256_of)
        for module in USERS_OF_CHECKSUMS:
            stack.enter_context(mock.patch.object(module, "sha256_of", timed))
        for name in ("__init__", "release"):
            stack.enter_context(mock.patch.object(RunLock, name, clock.timed(getattr(RunLock, name))))
        yield


@contextmanager
def without() -> Iterator[None]:
    """No checksum is taken and nothing is locked."""
    with contextlib.ExitStack() as stack:
        for module in USERS_OF_CHECKSUMS:
            stack.enter_context(mock.patch.object(module, "sha256_of", return_value=""))
        stack.enter_context(mock.patch.object(distsam.runs.folder, "RunLock", NoLock))
        yield


def seconds_of_a_run(run_dir: Path) -> float:
    """Of the quickstart, from its config to its summary."""
    config = load_config(CONFIG, [f"run.dir={run_dir}", "train.checkpoint_every=100", "train.num_threads=1"])
    began = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        run_training(config)
    return time.perf_counter() - began


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None, help="must be given, and new, under torchrun")
    parser.add_argument("--limit", type=float, default=None)
    options = parser.parse_args()
    is_first = os.environ.get("RANK", "0") == "0"
    if "RANK" in os.environ and options.folder is None:
        parser.error("give --folder: all ranks must see the same")
    folder = options.folder or Path(tempfile.mkdtemp(prefix="run_folder."))
    seconds_of_a_run(folder / "warm-up")
    shares, ratios = [], []
    for turn in range(options.rounds):
        clock = Clock()
        with measured(clock):
            whole_s = seconds_of_a_run(folder / f"with-{turn}")
        with without():
            bare_s = seconds_of_a_run(folder / f"without-{turn}")
        shares.append(clock.seconds / whole_s)
        ratios.append(whole_s / bare_s)
        if is_first:
            print(f"round {turn}: {whole_s:.2f} s, in them {1000 * clock.seconds:.1f} ms; without {bare_s:.2f} s")
    if is_first:
        print(f"in them {100 * statistics.median(shares):.2f} %, with / without {statistics.median(ratios):.3f}")
        if options.folder is None:
            shutil.rmtree(folder)
    if options.limit is not None and statistics.median(shares) > options.limit:
        sys.exit(f"checksums and lock take more than {100 * options.limit:g} % of the run")


if __name__ == "__main__":
    main()
