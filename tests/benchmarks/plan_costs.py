"""How often is the way that is chosen to evaluate a network one of the fastest? 60 random networks, every way timed.

    OMP_NUM_THREADS=1 python tests/benchmarks/plan_costs.py [--networks 60] [--first 0]

Entries, rows of a table and layers in turn, with sizes, bonds and batches that nobody chose. `distsam calibrate`
measures the times by which plans are chosen.
"""

import argparse
import random
import warnings
from math import exp, log

import torch

import distsam
from distsam.tensornet.cost import cost_ns
from distsam.tensornet.ranks import weight_spec
from distsam.train.calibration import Case, Timing, entries_case, layer_case


def random_case(number: int, timing: Timing) -> Case:
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
        return entries_case(spec, batch_size, timing)
    outputs = tuple(round(2 ** rng.uniform(2, 10 / order)) for _ in range(order))
    inputs = tuple(round(2 ** rng.uniform(2, 10 / order)) for _ in range(order))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of bonds that are larger than they can use
        spec = weight_spec(format, outputs, inputs, bond)
    if kind == "rows":
        return entries_case(spec, batch_size, timing, spec.modes[:order])
    return layer_case(spec, spec.modes[order:], batch_size, timing)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=60)
    parser.add_argument("--first", type=int, default=0, help="number of the first: others are other networks")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    regrets = []
    for number in range(arguments.first, arguments.first + arguments.networks):
        case = random_case(number, Timing(torch.device("cpu"), arguments.repeats))
        took, expected = case.chosen.time_ns / 1e6, cost_ns(case.chosen.work) / 1e6
        print(f"{case.name}: {took:.2f} ms, {expected:.2f} expected, {case.regret:.2f} times the fastest", flush=True)
        regrets.append(case.regret)
    good, mean = sum(regret <= 1.25 for regret in regrets), exp(sum(map(log, regrets)) / len(regrets))
    print(f"{good} of {len(regrets)} within 1.25 times the fastest, mean {mean:.3f}")


if __name__ == "__main__":
    main()
