"""Measures every way to evaluate a set of networks and fits the coefficients of distsam/tensornet/cost.py to the times.

    OMP_NUM_THREADS=1 python tests/benchmarks/plan_costs.py

Prints the fitted nanoseconds per unit of work, and the regret of the coefficients in use: how much longer the chosen
way takes than the one that was measured fastest.
"""

import argparse
import random
import time
import warnings
from collections.abc import Callable
from functools import partial
from math import exp, log
from typing import NamedTuple

import torch
from torch import Tensor

import distsam
from distsam.tensornet.cost import NANOSECONDS, Work, cost_ns
from distsam.tensornet.entries import entries_at, entries_of
from distsam.tensornet.planner import connected_cuts, ways_to_join
from distsam.tensornet.product_plans import candidate_products
from distsam.tensornet.products import product_of
from distsam.tensornet.ranks import weight_spec

SPECS = [
    distsam.tt((200, 200, 200), 10),
    distsam.tt((200, 200, 200), 20),
    distsam.tt((60, 60, 60, 60), 10),
    distsam.tt((2000, 1000, 50), 8),
    distsam.tt((100_000, 1000, 20), 8),
    distsam.cp((200, 200, 200), 10),
    distsam.cp((200, 200, 200), 30),
    distsam.cp((5000, 300, 20), 8),
    distsam.tucker((200, 200, 200), (10, 10, 10)),
    distsam.tucker((60, 60, 60), (8, 8, 8)),
    distsam.tucker((438, 6, 11), (8, 6, 8)),
    distsam.tr((200, 200, 200), 6),
    distsam.tr((200, 200, 200), 10),
    distsam.tr((30, 30, 30), 5),
]
BATCH_SIZES = [1, 64, 1024, 8192, 65536, 262144]


# Format, factors of both sides, bond.
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
    ("tucker", (16, 16), (64, 8), 8),
]
LAYER_BATCH_SIZES = [4, 64, 256, 2048]


# Format, factors of the number of rows and of their length, bond.
TABLES = [
    ("tt_matrix", (100, 100, 100), (4, 4, 4), 16),
    ("tt_matrix", (40, 50), (8, 8), 12),
    ("tt_matrix", (200, 300), (4, 4), 8),
    ("cp", (100, 100), (8, 8), 64),
    ("tr", (60, 80), (8, 4), 6),
    ("tucker", (100, 100), (8, 8), 8),
]
TABLE_BATCH_SIZES = [64, 1024, 8192]


class Measured(NamedTuple):
    """One way to do one thing."""

    work: Work
    time_ns: float


def timed_ns(run: Callable[[], Tensor], leaves: list[Tensor], repeats: int) -> float:
    times = []
    weights = None
    for _ in range(repeats + 1):
        for leaf in leaves:
            leaf.grad = None
        start = time.thread_time_ns()
        result = run()
        if weights is None:
            weights = torch.randn(result.shape)
            continue
        result.backward(weights)
        times.append(time.thread_time_ns() - start)
    return min(times)


def ways_of_entries(spec: distsam.NetworkSpec, batch_size: int, arguments: argparse.Namespace) -> list[Measured]:
    network = distsam.TensorNetwork(spec)
    cores, indices = (
        list(network.cores),
        torch.stack([torch.randint(size, (batch_size,)) for size in spec.shape], 1),
    )
    plans = [plan for cut in connected_cuts(spec) for plan in ways_to_join(spec, cut, batch_size)]
    return [
        Measured(plan.work, timed_ns(partial(entries_of, plan, spec, cores, indices), cores, arguments.repeats))
        for plan in plans
        if plan.cost_ns < 1e6 * arguments.longest_ms
    ]


def ways_of_rows(
    spec: distsam.NetworkSpec, modes: tuple[str, ...], batch_size: int, arguments: argparse.Namespace
) -> list[Measured]:
    cores = list(distsam.TensorNetwork(spec).cores)
    at = {mode: torch.randint(spec.size(mode), (batch_size,)) for mode in modes}
    plans = [plan for cut in connected_cuts(spec) for plan in ways_to_join(spec, cut, batch_size, modes)]
    return [
        Measured(plan.work, timed_ns(partial(entries_at, plan, spec, cores, at), cores, arguments.repeats))
        for plan in plans
        if plan.cost_ns < 1e6 * arguments.longest_ms and plan.cost_ns < 20 * min(p.cost_ns for p in plans)
    ]


def ways_of_products(
    spec: distsam.NetworkSpec, modes: tuple[str, ...], batch_size: int, arguments: argparse.Namespace
) -> list[Measured]:
    cores = list(distsam.TensorNetwork(spec).cores)
    vectors = torch.randn(batch_size, *(spec.size(mode) for mode in modes), requires_grad=True)
    plans = list(candidate_products(spec, modes, batch_size))
    return [
        Measured(plan.work, timed_ns(partial(product_of, plan, cores, vectors), [*cores, vectors], arguments.repeats))
        for plan in plans
        if plan.cost_ns < 1e6 * arguments.longest_ms and plan.cost_ns < 20 * min(p.cost_ns for p in plans)
    ]


def fit(works: list[Work], times_ns: list[float]) -> Work:
    """Coefficients with the least squared error of the logarithm of the time."""
    work_NW = torch.tensor(works, dtype=torch.float64)
    log_times_N = torch.tensor(times_ns, dtype=torch.float64).log()
    log_ns_W = torch.tensor(NANOSECONDS, dtype=torch.float64).log().requires_grad_()
    optimizer = torch.optim.LBFGS([log_ns_W], max_iter=500, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        error = ((work_NW @ log_ns_W.exp()).log() - log_times_N).square().mean()
        error.backward()
        return error

    optimizer.step(loss)
    print(f"a time is explained within a factor of {exp(loss().item() ** 0.5):.2f} (one sigma)")
    return Work(*log_ns_W.detach().exp().tolist())


def random_ways(number: int, arguments: argparse.Namespace) -> tuple[list[Measured], str]:
    """One of many networks that nobody chose: entries, rows or a layer."""
    rng = random.Random(number)
    kind = ("entries", "rows", "layer")[number % 3]
    format = rng.choice(["tt", "tr", "cp", "tucker"] if kind == "entries" else ["tt_matrix", "tr", "cp", "tucker"])
    order = rng.choice([3, 4]) if kind == "entries" else 2 if format in ("tr", "cp", "tucker") else rng.choice([2, 3])
    batch_size = round(2 ** rng.uniform(5, 17 if kind == "entries" else 13 if kind == "rows" else 11))
    bond = rng.choice([4, 8, 12, 16, 24]) // (2 if format in ("tr", "tucker") else 1)
    if kind == "entries":
        shape = tuple(round(2 ** rng.uniform(3, 11 - order)) for _ in range(order))
        spec = getattr(distsam, format)(shape, [bond] * order if format == "tucker" else bond)
        return ways_of_entries(spec, batch_size, arguments), f"{batch_size} entries of {format} {shape} bond {bond}"
    outputs = tuple(round(2 ** rng.uniform(2, 10 / order)) for _ in range(order))
    inputs = tuple(round(2 ** rng.uniform(2, 10 / order)) for _ in range(order))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of bonds that are larger than they can use
        spec = weight_spec(format, outputs, inputs, bond)
    what = f"{batch_size} {'rows' if kind == 'rows' else 'vectors'} of {format} {outputs} x {inputs} bond {bond}"
    if kind == "rows":
        return ways_of_rows(spec, spec.modes[:order], batch_size, arguments), what
    return ways_of_products(spec, spec.modes[order:], batch_size, arguments), what


def check_random(arguments: argparse.Namespace) -> None:
    """Prints how often the chosen way is within 1.25 times the fastest of those tried."""
    regrets = [report(*random_ways(number, arguments)) for number in range(arguments.random)]
    good = sum(regret <= 1.25 for regret in regrets)
    print(
        f"{good} of {len(regrets)} within 1.25 times the fastest, mean {exp(sum(map(log, regrets)) / len(regrets)):.3f}"
    )


def report(ways: list[Measured], what: str) -> float:
    """Prints what is chosen, and returns how many times longer it takes than the fastest."""
    chosen = min(ways, key=lambda way: cost_ns(way.work))
    fastest = min(way.time_ns for way in ways)
    print(
        f"{what}: expected {cost_ns(chosen.work) / 1e6:.2f} ms, took {chosen.time_ns / 1e6:.2f}, fastest of "
        f"{len(ways)} {fastest / 1e6:.2f}",
        flush=True,
    )
    return chosen.time_ns / fastest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--longest-ms", type=float, default=400.0, help="ways expected to take longer are left out")
    parser.add_argument("--save", help="a file for what was measured")
    parser.add_argument("--random", type=int, help="look at so many random networks instead, and fit nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.random:
        check_random(arguments)
        return
    measured: list[Measured] = []
    regrets: list[float] = []
    for spec in SPECS:
        for batch_size in BATCH_SIZES:
            ways = ways_of_entries(spec, batch_size, arguments)
            measured += ways
            bonds = [spec.size(b) for b in spec.bonds]
            regrets.append(report(ways, f"{batch_size} entries of {spec.format} {spec.shape} bonds {bonds}"))
    for format, num_rows, length, bond in TABLES:
        spec = weight_spec(format, num_rows, length, bond)
        for batch_size in TABLE_BATCH_SIZES:
            ways = ways_of_rows(spec, spec.modes[: len(num_rows)], batch_size, arguments)
            measured += ways
            regrets.append(report(ways, f"{batch_size} rows of {format} {num_rows} of {length} bond {bond}"))
    for format, outputs, inputs, bond in LAYERS:
        spec = weight_spec(format, outputs, inputs, bond)
        for batch_size in LAYER_BATCH_SIZES:
            ways = ways_of_products(spec, spec.modes[len(outputs) :], batch_size, arguments)
            if not ways:
                continue
            measured += ways
            regrets.append(report(ways, f"{batch_size} vectors by {format} {inputs} -> {outputs} bond {bond}"))
    if arguments.save:
        torch.save([tuple(way) for way in measured], arguments.save)
    print(f"regret: mean {exp(sum(map(log, regrets)) / len(regrets)):.3f}, largest {max(regrets):.2f}")
    for field, ns in zip(Work._fields, fit([w.work for w in measured], [w.time_ns for w in measured]), strict=True):
        print(f"{field}: {ns:.3g} ns")


if __name__ == "__main__":
    main()
