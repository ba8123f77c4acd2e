"""100,000 entries of a tensor and the gradients of all cores: distsam, torchTT and tntorch, side by side.

    pip install -e '.[bench]'
    OMP_NUM_THREADS=1 python tests/benchmarks/entries.py [--batch 100000] [--shape 200 200 200] [--bonds 10 20]

Measured: forward (values at random indices) and backward (their sum with random weights), on one thread, thread CPU
time, the contenders interleaved within each round in an order that rotates; the median over rounds, and the median of
the ratio to distsam within a round. Each contender's values and gradients are first held against distsam's. tntorch
evaluates TT, CP and Tucker, torchTT TT alone; a peer that is not installed is named and left out. `by rows` is the
same network evaluated by distsam without merging any cores: what the planner gains. With --limit the exit code is 1 if
a peer on TT is less than so many times slower than distsam, or was not measured.
"""

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import distsam
from distsam.tensornet.entries import entries_of
from distsam.tensornet.planner import plan_cut, plan_entries

Evaluate = Callable[[Sequence[Tensor], Tensor], Tensor]


def torchtt_of(spec: distsam.NetworkSpec) -> Evaluate | None:
    if spec.format != "tt":
        return None
    import torchtt

    def evaluate(cores: Sequence[Tensor], indices: Tensor) -> Tensor:
        return torchtt.TT([cores[0].unsqueeze(0), *cores[1:-1], cores[-1].unsqueeze(-1)]).apply_mask(indices)

    return evaluate


def tntorch_of(spec: distsam.NetworkSpec) -> Evaluate | None:
    if spec.format not in ("tt", "cp", "tucker"):
        return None
    import tntorch

    def evaluate(cores: Sequence[Tensor], indices: Tensor) -> Tensor:
        if spec.format == "tt":
            network = tntorch.Tensor([cores[0].unsqueeze(0), *cores[1:-1], cores[-1].unsqueeze(-1)])
        elif spec.format == "cp":
            network = tntorch.Tensor(list(cores))
        else:
            # Its Tucker is a train with factors: the central core as a train whose bonds are products of ranks.
            network = tntorch.Tensor(train_of(cores[0]), Us=list(cores[1:]))
        values = network[indices]
        return values if isinstance(values, Tensor) else values.torch()

    return evaluate


def train_of(central: Tensor) -> list[Tensor]:
    """A three-way tensor as an exact train: identity, the tensor, identity."""
    first, _, last = central.shape
    eye = torch.eye(first, dtype=central.dtype).unsqueeze(0), torch.eye(last, dtype=central.dtype).unsqueeze(-1)
    return [eye[0], central, eye[1]]


PEERS: dict[str, Callable[[distsam.NetworkSpec], Evaluate | None]] = {"torchtt": torchtt_of, "tntorch": tntorch_of}


def contenders(spec: distsam.NetworkSpec, batch_size: int) -> dict[str, Evaluate]:
    plan = plan_entries(spec, batch_size)
    by_rows = plan_cut(spec, tuple((k,) for k in range(spec.num_cores)), batch_size)
    found: dict[str, Evaluate] = {
        "distsam": lambda cores, indices: entries_of(plan, spec, cores, indices),
        "by rows": lambda cores, indices: entries_of(by_rows, spec, cores, indices),
    }
    for name, build in PEERS.items():
        try:
            evaluate = build(spec)
        except ImportError as error:
            print(f"note: {name} is left out ({error}); pip install -e '.[bench]' brings it")
            continue
        if evaluate is not None:
            found[name] = evaluate
    return found


def run(evaluate: Evaluate, cores: Sequence[Tensor], indices: Tensor, weights: Tensor) -> tuple[Tensor, int]:
    for core in cores:
        core.grad = None
    start = time.thread_time_ns()
    values = evaluate(cores, indices)
    values.backward(weights)
    return values.detach(), time.thread_time_ns() - start


def check_agreement(
    found: dict[str, Evaluate], spec: distsam.NetworkSpec, cores: list[Tensor], indices: Tensor, weights: Tensor
) -> None:
    outcomes = {}
    for name, evaluate in found.items():
        values, _ = run(evaluate, cores, indices, weights)
        outcomes[name] = [values, *(core.grad for core in cores)]
    for name, outcome in outcomes.items():
        for mine, theirs in zip(outcomes["distsam"], outcome, strict=True):
            # float32: sums of up to 10^5 terms, in other orders.
            difference = float((mine - theirs).norm() / mine.norm())
            if difference > 1e-4:
                raise SystemExit(f"{name} disagrees with distsam on {spec}: relative difference {difference:.1e}")


def compare(spec: distsam.NetworkSpec, batch_size: int, rounds: int) -> dict[str, float]:
    """Prints one table and returns how many times slower than distsam each contender is."""
    generator = torch.Generator().manual_seed(0)
    indices = torch.stack([torch.randint(size, (batch_size,), generator=generator) for size in spec.shape], 1)
    weights = torch.randn(batch_size, generator=generator)
    cores = [core.detach().requires_grad_() for core in distsam.TensorNetwork(spec, generator=generator).cores]
    found = contenders(spec, batch_size)
    check_agreement(found, spec, cores, indices, weights)
    times: dict[str, list[int]] = {name: [] for name in found}
    names = list(found)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            times[name].append(run(found[name], cores, indices, weights)[1])
    bonds = sorted({spec.size(bond) for bond in spec.bonds})
    print(
        f"\n{spec.format} {spec.shape}, bond {bonds}, {batch_size} entries; groups {plan_entries(spec, batch_size).cut}"
    )
    ratios = {}
    for name in names:
        ratios[name] = statistics.median(t / mine for t, mine in zip(times[name], times["distsam"], strict=True))
        print(f"  {name:8} {statistics.median(times[name]) / 1e6:9.2f} ms   x {ratios[name]:.2f}")
    return ratios


def specs_of(shape: Sequence[int], bond: int) -> list[distsam.NetworkSpec]:
    return [
        distsam.tt(shape, bond),
        distsam.tr(shape, bond),
        distsam.tucker(shape, [bond] * len(shape)),
        distsam.cp(shape, bond),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=100_000)
    parser.add_argument("--shape", type=int, nargs=3, default=[200, 200, 200])
    parser.add_argument("--bonds", type=int, nargs="+", default=[10, 20])
    parser.add_argument("--formats", nargs="+", default=["tt", "tr", "tucker", "cp"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--limit", type=float, help="exit with 1 if a peer on TT is less than so many times slower")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of the peers
    below: list[str] = []
    unmeasured: set[str] = set()
    for bond in arguments.bonds:
        for spec in specs_of(arguments.shape, bond):
            if spec.format not in arguments.formats:
                continue
            ratios = compare(spec, arguments.batch, arguments.rounds)
            if arguments.limit and spec.format == "tt":
                below += [name for name in PEERS if name in ratios and ratios[name] < arguments.limit]
                unmeasured |= PEERS.keys() - ratios.keys()
    if arguments.limit and "tt" not in arguments.formats:
        unmeasured |= PEERS.keys()
    if below:
        sys.exit(f"less than {arguments.limit} times slower than distsam: {', '.join(below)}")
    if unmeasured:
        sys.exit(f"not measured on TT, so --limit cannot say: {', '.join(sorted(unmeasured))}")


if __name__ == "__main__":
    main()
