"""What a unit of each kind of work takes on this machine: every way to evaluate some networks, timed, and a fit.

Only the ratios of the times count, and a wrong choice costs time, never accuracy beyond rounding.
"""

import json
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import exp, log
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from distsam.errors import InputError
from distsam.runs.atomic import write_atomically
from distsam.tensornet import NetworkSpec, TensorNetwork, cp, kernels, tr, tt, tucker
from distsam.tensornet.cost import NANOSECONDS, Work, cost_ns
from distsam.tensornet.cuts import connected_cuts
from distsam.tensornet.entries import entries_at
from distsam.tensornet.planner import ways_to_join
from distsam.tensornet.product_plans import candidate_products
from distsam.tensornet.products import product_of
from distsam.tensornet.ranks import weight_spec

# Ways that are expected to take longer than this, or so many times as long as the best, are not timed.
LONGEST_NS, WORST_RATIO = 4e8, 20
# Times are explained of the ways that take at most so many times as long as the fastest.
_GOOD_RATIO = 2
# How firmly a coefficient that the times say little of keeps to the one in use.
_FAITH = 1e-3

# Entries of these, in batches of these sizes.
ENTRIES = [
    tt((200, 200, 200), 10),
    tt((200, 200, 200), 20),
    tt((60, 60, 60, 60), 10),
    tt((2000, 1000, 50), 8),
    tt((100_000, 1000, 20), 8),
    cp((200, 200, 200), 10),
    cp((200, 200, 200), 30),
    cp((5000, 300, 20), 8),
    tucker((200, 200, 200), (10, 10, 10)),
    tucker((60, 60, 60), (8, 8, 8)),
    tucker((438, 6, 11), (8, 6, 8)),
    tr((200, 200, 200), 6),
    tr((200, 200, 200), 10),
    tr((30, 30, 30), 5),
]
ENTRY_BATCHES = [1, 64, 1024, 8192, 65536, 262144]
# Rows of tables: format, factors of the number of rows and of their length, bond.
TABLES = [
    ("tt_matrix", (100, 100, 100), (4, 4, 4), 16),
    ("tt_matrix", (40, 50), (8, 8), 12),
    ("tt_matrix", (200, 300), (4, 4), 8),
    ("cp", (100, 100), (8, 8), 64),
    ("tr", (60, 80), (8, 4), 6),
    ("tucker", (100, 100), (8, 8), 8),
]
TABLE_BATCHES = [64, 1024, 8192]
# Layers: format, factors of the output and of the input, bond.
LAYERS = [
    ("tt_matrix", (4,) * 5, (4,) * 5, 16),
    ("tt_matrix", (8, 8, 8), (8, 8, 8), 24),
    ("tt_matrix", (8,) * 4, (8,) * 4, 8),
    ("tt_matrix", (32, 32), (16, 16), 32),
    ("tt", (16, 16), (16, 16), 16),
    ("tr", (8, 8), (12, 12), 6),
    ("cp", (4,) * 5, (4,) * 5, 64),
    ("cp", (32, 32), (32, 32), 200),
    ("tucker", (32, 32), (32, 32), 6),
    ("tucker", (64, 8), (16, 16), 8),
]
LAYER_BATCHES = [4, 64, 256, 2048]


class Measured(NamedTuple):
    """One way to do one thing: its work, and the shortest time that it took."""

    work: Work
    time_ns: float


class Case(NamedTuple):
    """A thing to do, and every way to do it."""

    name: str
    ways: list[Measured]

    @property
    def chosen(self) -> Measured:
        """The way that the costs in use choose."""
        return min(self.ways, key=lambda way: cost_ns(way.work))

    @property
    def good(self) -> list[Measured]:
        """The ways among which it matters which is chosen. What `kernels` join is faster than all that torch does, and
        not asked for as a rule: torch's ways are held against each other."""
        fastest = min(way.time_ns for way in self.ways if not way.work.fused_rows)
        return [way for way in self.ways if way.work.fused_rows or way.time_ns <= _GOOD_RATIO * fastest]

    @property
    def regret(self) -> float:
        """How many times as long the chosen way takes as the fastest."""
        return self.chosen.time_ns / min(way.time_ns for way in self.ways)


class Timing(NamedTuple):
    """How ways are timed.

    Args:
        device: where.
        repeats: after a first run that does not count.
    """

    device: torch.device
    repeats: int = 3

    def now_ns(self) -> int:
        """On a CPU the time of this thread, so that others on the machine count less."""
        if self.device.type == "cpu":
            return time.thread_time_ns()
        torch.accelerator.synchronize(self.device)
        return time.perf_counter_ns()

    def measure(self, plans: Sequence[Any], run: Callable[[Any], Tensor], leaves: Sequence[Tensor]) -> list[Measured]:
        """Forward and backward of every plan that is not hopeless."""
        best = min(plan.cost_ns for plan in plans)
        tried = [plan for plan in plans if plan.cost_ns < min(LONGEST_NS, WORST_RATIO * best)]
        return [Measured(plan.work, self._shortest(partial(run, plan), leaves)) for plan in tried]

    def _shortest(self, run: Callable[[], Tensor], leaves: Sequence[Tensor]) -> float:
        times = []
        weights = torch.randn_like(run())
        for _ in range(self.repeats):
            for leaf in leaves:
                leaf.grad = None
            start = self.now_ns()
            run().backward(weights)
            times.append(self.now_ns() - start)
        return min(times)


def entries_case(spec: NetworkSpec, batch_size: int, timing: Timing, fixed: Sequence[str] | None = None) -> Case:
    """Entries, or with `fixed` modes rows of a table."""
    modes = tuple(spec.modes if fixed is None else fixed)
    cores = list(TensorNetwork(spec, device=timing.device).cores)
    at = {mode: torch.randint(spec.size(mode), (batch_size,), device=timing.device) for mode in modes}
    arguments = batch_size, modes, False, kernels.serve(cores[0].dtype, timing.device)
    plans = [plan for cut in connected_cuts(spec) for plan in ways_to_join(spec, cut, *arguments)]
    what = "entries" if fixed is None else "rows"
    bonds = sorted({spec.size(bond) for bond in spec.bonds})
    name = f"{batch_size} {what} of {spec.format} {spec.shape}, bonds {bonds}"
    return Case(name, timing.measure(plans, lambda plan: entries_at(plan, spec, cores, at), cores))


def layer_case(spec: NetworkSpec, modes: Sequence[str], batch_size: int, timing: Timing) -> Case:
    """A layer with vectors over `modes`."""
    cores = list(TensorNetwork(spec, device=timing.device).cores)
    vectors = torch.randn(batch_size, *map(spec.size, modes), device=timing.device, requires_grad=True)
    plans = list(candidate_products(spec, tuple(modes), batch_size))
    bonds = sorted({spec.size(bond) for bond in spec.bonds})
    name = f"{batch_size} vectors of {spec.format} {spec.shape}, bonds {bonds}"
    run = partial(_product, cores=cores, vectors=vectors)
    return Case(name, timing.measure(plans, run, [*cores, vectors]))


def _product(plan: Any, cores: list[Tensor], vectors: Tensor) -> Tensor:
    return product_of(plan, cores, vectors)


def cases(timing: Timing, quick: bool = False) -> Iterator[Case]:
    """All that is measured; those of which every way is too long are left out."""
    step = 3 if quick else 1
    for spec in ENTRIES[::step]:
        for batch_size in ENTRY_BATCHES[::step]:
            yield entries_case(spec, batch_size, timing)
    for format, num_rows, length, bond in TABLES[::step]:
        spec = weight_spec(format, num_rows, length, bond)
        for batch_size in TABLE_BATCHES[::step]:
            yield entries_case(spec, batch_size, timing, spec.modes[: len(num_rows)])
    for format, outputs, inputs, bond in LAYERS[::step]:
        spec = weight_spec(format, outputs, inputs, bond)
        for batch_size in LAYER_BATCHES[::step]:
            case = layer_case(spec, spec.modes[len(outputs) :], batch_size, timing)
            if case.ways:
                yield case


def fit(measured: Sequence[Measured]) -> tuple[Work, float]:
    """(nanoseconds a unit, the factor within which they explain the times, one sigma): the least squared error of the
    logarithm of the time."""
    work_NW = torch.tensor([way.work for way in measured], dtype=torch.float64)
    log_times_N = torch.tensor([way.time_ns for way in measured], dtype=torch.float64).log()
    known_W = torch.tensor(NANOSECONDS, dtype=torch.float64).log()
    log_ns_W = known_W.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([log_ns_W], max_iter=500, line_search_fn="strong_wolfe")

    def error() -> Tensor:
        return ((work_NW @ log_ns_W.exp()).log() - log_times_N).square().mean()

    def loss() -> Tensor:
        optimizer.zero_grad()
        total = error() + _FAITH * (log_ns_W - known_W).square().sum()
        total.backward()
        return total

    optimizer.step(loss)
    return Work(*log_ns_W.detach().exp().tolist()), exp(float(error().detach()) ** 0.5)


def calibrate(path: Path, device: str, quick: bool, say: Callable[[str], None]) -> None:
    """Measure, fit, and write the file that DISTSAM_COSTS names.

    Args:
        path: of the file.
        device: "cpu" or "cuda".
        quick: a ninth of the cases.
        say: is given a line for each case.

    Raises:
        InputError: another device, or one that is not here.
    """
    if device not in ("cpu", "cuda"):
        raise InputError(f"--device: {device!r} is unknown; use cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device: cuda is not available here; use cpu")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        measured: list[Measured] = []
        regrets: list[float] = []
        for case in cases(Timing(torch.device(device)), quick):
            measured += case.good
            regrets.append(case.regret)
            took, fastest = case.chosen.time_ns / 1e6, min(way.time_ns for way in case.ways) / 1e6
            expected = cost_ns(case.chosen.work) / 1e6
            say(f"{case.name}: {took:.2f} ms, {expected:.2f} expected; fastest of {len(case.ways)} {fastest:.2f}")
        costs, factor = fit(measured)
    finally:
        torch.set_num_threads(threads)
    mean = exp(sum(map(log, regrets)) / len(regrets))
    say(f"so far the chosen way took {mean:.2f} times as long as the fastest; new times are right within {factor:.2f}")
    content = {
        "nanoseconds": {name: float(f"{ns:.4g}") for name, ns in zip(Work._fields, costs, strict=True)},
        "machine": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }
    write_atomically(path, json.dumps(content, indent=2) + "\n")
