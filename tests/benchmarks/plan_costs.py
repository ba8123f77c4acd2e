"""Measures every cut of a set of networks and fits the coefficients of distsam/tensornet/cost.py to the times.

    OMP_NUM_THREADS=1 python tests/benchmarks/plan_costs.py

Prints the fitted nanoseconds per unit of work, and the regret of the coefficients in use: how much longer the chosen
cut takes than the one that was measured fastest.
"""

import argparse
import time
from math import exp, log

import torch

import distsam
from distsam.tensornet.cost import NANOSECONDS, Work
from distsam.tensornet.entries import entries_of
from distsam.tensornet.planner import EntryPlan, connected_cuts, plan_cut

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


def measure_ns(network: distsam.TensorNetwork, plan: EntryPlan, indices: torch.Tensor, repeats: int) -> float:
    times = []
    for _ in range(repeats + 1):
        network.zero_grad()
        start = time.thread_time_ns()
        entries_of(plan, network.spec, list(network.cores), indices).sum().backward()
        times.append(time.thread_time_ns() - start)
    return min(times[1:])


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--longest-ms", type=float, default=400.0, help="cuts expected to take longer are left out")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    works, times_ns, regrets = [], [], []
    for spec in SPECS:
        network = distsam.TensorNetwork(spec)
        for batch_size in BATCH_SIZES:
            indices = torch.stack([torch.randint(size, (batch_size,)) for size in spec.shape], 1)
            plans = [plan_cut(spec, cut, batch_size) for cut in connected_cuts(spec)]
            plans = [plan for plan in plans if plan.cost_ns < 1e6 * arguments.longest_ms]
            measured = [measure_ns(network, plan, indices, arguments.repeats) for plan in plans]
            works += [plan.work for plan in plans]
            times_ns += measured
            chosen = min(range(len(plans)), key=lambda n: plans[n].cost_ns)
            regrets.append(measured[chosen] / min(measured))
            print(
                f"{spec.format} {spec.shape} bonds {[spec.size(b) for b in spec.bonds]} batch {batch_size}: "
                f"expected {plans[chosen].cost_ns / 1e6:.2f} ms for {plans[chosen].cut}, "
                f"took {measured[chosen] / 1e6:.2f}, fastest {min(measured) / 1e6:.2f}"
            )
    print(f"regret: mean {exp(sum(map(log, regrets)) / len(regrets)):.3f}, largest {max(regrets):.2f}")
    for field, ns in zip(Work._fields, fit(works, times_ns), strict=True):
        print(f"{field}: {ns:.3g} ns")


if __name__ == "__main__":
    main()
