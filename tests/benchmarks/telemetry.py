"""What telemetry and watching cost: steps at 500 cores with and without them, at the default cadence of rows.

    OMP_NUM_THREADS=1 python tests/benchmarks/telemetry.py              # exit code 1 where a share is above 1 %
    OMP_NUM_THREADS=1 python tests/benchmarks/telemetry.py --networks many --every 100 --blocks 20

One model trains; in blocks of `--every` steps, each with one row, three arms take turns, so that load hits them alike
(with models of their own, where those lie in memory made more of a difference):

    bare          the engine's step (SAM or plain), without a coordinator, and nothing between two steps
    telemetry     the same with all that `distsam train` does to publish the balance: measuring core norms, rates,
                  alerts of all three kinds, the row in metrics.jsonl, the plain progress line
    +tensorboard  the same with the rows as TensorBoard's files too

Two answers, in CPU time of this process (all threads), medians over blocks. `telemetry` and `+tensorboard`, by the
clock: what is done between two steps, as a share of the step. It is `idle` after every step, and `row ms` where a row
is put together and written, once in as many steps as the default cadence says. What is measured inside the steps of a
row is not in it. `by ratio`: the ratio of the medians of the arms `telemetry` and `bare`, with all that is in the
steps, for the default cadence:

    idle + (ratio - 1 - idle) * every / default

because a row costs the same whatever the cadence. Rows that are ten times as frequent show ten times as clearly, but
on a machine that others use a ratio still scatters by more than what is to be shown. Scores are no telemetry: they are
what a user asks to have evaluated.

Watching: in every second turn a `distsam watch` of the folder runs in another process, stopped in between. `watcher` is
its own CPU time over the wall-clock time that it was at work: what it could take from a run that needs every core.
With --limit the exit code is 1 where `telemetry` or `watcher` is above it.
"""

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

import distsam
from distsam.balance import BalanceCoordinator
from distsam.engine import NativeEngine
from distsam.optim import Plain
from distsam.runs.about import About
from distsam.runs.folder import RunFolder
from distsam.tasks.task import Goal
from distsam.train.alerts import Alerts, Bounds
from distsam.train.config import TrainKeys
from distsam.train.loop import TrainingLoop
from distsam.train.progress import TrainingProgress
from distsam.train.run_state import BestWeights, RunState
from distsam.train.trackers.jsonl import JsonlTracker
from distsam.train.trackers.tensorboard import TensorboardTracker
from distsam.train.trackers.tracker import TrackerGroup

CORES = 500
ENDLESS = 10**9
ARMS = ("bare", "telemetry", "+tensorboard")
DEFAULT = TrainKeys.model_fields["log_every"].default
GOAL = Goal("validation/r2", higher_is_better=True, columns=("r2",))


class Chain(nn.Module):
    """One tensor train of 500 cores, and entries that it is fitted to."""

    def __init__(self) -> None:
        super().__init__()
        self.network = distsam.TensorNetwork(distsam.tt((4,) * CORES, 4))
        self.indices, self.values = torch.randint(4, (64, CORES)), torch.randn(64)

    def forward(self) -> Tensor:
        return self.network.at(self.indices).sub(self.values).square().mean()


class Many(nn.Module):
    """250 networks of two cores each; the loss is that of their dense products."""

    def __init__(self) -> None:
        super().__init__()
        spec = distsam.einsum_network("ar,br->ab", {"a": 64, "b": 64, "r": 8})
        self.networks = nn.ModuleList(distsam.TensorNetwork(spec) for _ in range(CORES // 2))
        self.target = torch.randn(64, 64)

    def forward(self) -> Tensor:
        return torch.stack([network.dense().sub(self.target).square().mean() for network in self.networks]).mean()


NETWORKS: dict[str, Callable[[], nn.Module]] = {"chain": Chain, "many": Many}
METHODS: dict[str, Callable[[torch.optim.Optimizer], distsam.optim.Wrapper]] = {"plain": Plain, "sam": distsam.SAM}


class Training:
    """One model that trains, in a run folder; what it tells of its steps is switched on and off."""

    def __init__(self, model: nn.Module, method: str, folder: Path, every: int) -> None:
        self.model = model
        self.optimizer = METHODS[method](torch.optim.Adam(model.parameters(), lr=1e-3))
        self.engine = NativeEngine(model, self.optimizer)
        self.coordinator = BalanceCoordinator(model, self.optimizer, every=every)
        self.num_steps = 0
        self.told_s: dict[str, list[float]] = {arm: [] for arm in ARMS}
        record = JsonlTracker(RunFolder(folder).metrics, 0)
        self.all_trackers = TrackerGroup([record, TensorboardTracker(folder / "tensorboard", 0)])
        self.trackers_of = {"telemetry": TrackerGroup([record]), "+tensorboard": self.all_trackers}
        self.trackers = self.all_trackers
        self.alerts = Alerts(Bounds(1e9, 1e9, 0.99), [network.name for network in self.coordinator.networks])
        self.progress = TrainingProgress(ENDLESS, 0, shown=True, goal_key=GOAL.key, stream=StringIO())
        run: Any = SimpleNamespace(
            coordinator=self.coordinator,
            engine=self.engine,
            rank=0,
            task=SimpleNamespace(goal=GOAL),
            counts=dict,
            settled=dict,
        )
        self.loop = TrainingLoop(
            run,
            TrainKeys(steps=ENDLESS, eval_every=ENDLESS, checkpoint_every=ENDLESS),
            RunState(BestWeights(GOAL)),
            save=lambda: None,
            poll=lambda: None,
            write_row=self._write,
            tick=self.progress.tick,
        )

    def _write(self, row: Any) -> None:
        for line in self.alerts.look(row):
            self.trackers.alert(line)
        self.trackers.log(row)
        self.progress.show(row)

    def block(self, arm: str, num_steps: int) -> float:
        """CPU seconds of this process in so many steps."""
        is_told = arm != "bare"
        # As if there had never been one: an optimizer measures for its coordinator alone.
        self.optimizer.guard._coordinator = self.coordinator if is_told else None
        self.trackers = self.trackers_of.get(arm, self.trackers)
        began = time.process_time()
        for _ in range(num_steps):
            self.engine.step([self.model])
            self.num_steps += 1
            if is_told:
                told = time.process_time()
                self.loop._after_step(self.num_steps)
                self.told_s[arm].append(time.process_time() - told)
        return time.process_time() - began


class Watcher:
    """`distsam watch` of a folder, in a process that can be stopped and go on."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-m", "distsam", "watch", str(folder)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        self.wall_s = self._first_cpu_s = 0.0
        time.sleep(3)  # it has started: that is done once
        self._process.send_signal(signal.SIGSTOP)
        self._first_cpu_s = self._cpu_s()

    def _cpu_s(self) -> float:
        if self._process.poll() is not None:
            raise RuntimeError(f"the watcher has ended with {self._process.returncode}")
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """It goes on, and is stopped at the end."""
        self._process.send_signal(signal.SIGCONT)
        began = time.perf_counter()
        yield
        self.wall_s += time.perf_counter() - began
        self._process.send_signal(signal.SIGSTOP)

    @property
    def share(self) -> float:
        """Its CPU time over the wall-clock time that it was at work."""
        return (self._cpu_s() - self._first_cpu_s) / self.wall_s

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait(timeout=60)


def measure(network: str, method: str, options: argparse.Namespace, folder: Path) -> float:
    """Print the shares of a case; returns the larger of telemetry's and the watcher's."""
    run, every = RunFolder(folder), options.every
    lock = run.claim("")
    About(ENDLESS, 0, None).write(run.about)
    torch.manual_seed(0)
    training = Training(NETWORKS[network](), method, folder, every)
    # All that is done once; and so that the logged step is amid a block, and the next, which brings its row, too.
    training.block("+tensorboard", every + 2)
    training.block("bare", (every // 2 - training.num_steps) % every)
    watcher, seconds = Watcher(folder), {arm: [] for arm in ARMS}
    try:
        for turn in range(options.blocks):
            with watcher.at_work() if turn % 2 else nullcontext():
                # Another one is the first in each turn.
                for arm in (*ARMS[turn % 3 :], *ARMS[: turn % 3]):
                    seconds[arm].append(training.block(arm, every))
        watching = watcher.share
    finally:
        watcher.end()
        lock.release()
        training.all_trackers.close()
    medians = {arm: statistics.median(found) for arm, found in seconds.items()}
    step_s = medians["bare"] / every
    idle = statistics.median(training.told_s["telemetry"]) / step_s
    # Of `every` calls one brings a row.
    rows_s = {arm: statistics.median(sorted(training.told_s[arm])[-len(seconds[arm]) :]) for arm in ARMS[1:]}
    shares = {arm: idle + row_s / DEFAULT / step_s for arm, row_s in rows_s.items()}
    ratio = medians["telemetry"] / medians["bare"]
    by_ratio = idle + (ratio - 1 - idle) * every / DEFAULT
    row_kb = run.metrics.stat().st_size / 1e3 / len(run.metrics.read_bytes().splitlines())
    print(
        f"{network:6s} {method:6s} {1e3 * step_s:8.1f} {row_kb:7.0f} {1e3 * rows_s['telemetry']:7.1f} {idle:7.3%} "
        f"{shares['telemetry']:10.2%} {shares['+tensorboard']:13.2%} {watching:8.2%} {ratio:6.3f} {by_ratio:9.2%}",
        flush=True,
    )
    return max(shares["telemetry"], watching)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--blocks", type=int, default=15, help="so often each arm is measured (%(default)s)")
    parser.add_argument("--every", type=int, default=10, help="steps a row, and a block (%(default)s)")
    parser.add_argument("--limit", type=float, default=0.01, help="the largest share of a step (%(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="telemetry."))
    print(
        f"{'':6s} {'':6s} {'step ms':>8s} {'row kB':>7s} {'row ms':>7s} {'idle':>7s} {'telemetry':>10s} "
        f"{'+tensorboard':>13s} {'watcher':>8s} {'ratio':>6s} {'by ratio':>9s}"
    )
    shares = [
        measure(network, method, options, folder / f"{network}-{method}")
        for network in options.networks
        for method in options.methods
    ]
    shutil.rmtree(folder)
    sys.exit(0 if max(shares) <= options.limit else 1)


if __name__ == "__main__":
    main()
