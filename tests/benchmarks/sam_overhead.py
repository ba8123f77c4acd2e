"""What SAM costs beside its two passes: perturb and restore, against peers and the same thing written by hand.

Run it (CPU, about two minutes and 5 GB; pytorch_optimizer is in the extra `bench`):

    python tests/benchmarks/sam_overhead.py [--workloads a b] [--rounds 41] [--world 1 2] [--limit 1.1]

Workloads: (a) 500 cores of 16x16x16, (b) 50 tensors of 1000x1000, float32; plain tensors in one process (world 1)
and DTensors, Shard(0), on gloo ranks (world 2 and more).

Measured, per contender:
    perturb + restore   from gradients in place to weights at w + epsilon with empty gradients, and back from there to
                        w; for distsam: entering and leaving `with sam.perturbed():`, its measurement included.
    whole optimizer     the same and a step of SGD with momentum; for distsam also what makes the step safe: the
                        second measurement and the decision of all ranks whether the step counts.
Gradients are set outside the timed parts. Contenders run in shuffled order within each round, on one thread; CPU time
is that of rank 0's main thread, without the wait for collectives. Medians; ratios are medians of the ratio to `hand`
of the same round. `length` is ||epsilon|| / rho over all ranks, `exact`: the weights came back bit for bit.

`bound`: distsam's traffic at the bandwidth of a copy of the same weights in the same run, 28 bytes an element (norm:
read g; move: read w, write the copy, read g, write w; restore: read the copy, write w).

With --limit the exit code is 1 if distsam is above so many times `hand` in perturb + restore.
"""

import argparse
import random
import socket
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.optim import SGD, Optimizer

import distsam

RHO = 0.05
WORKLOADS = {"a": (500, (16, 16, 16)), "b": (50, (1000, 1000))}
BYTES_PER_ELEMENT, BYTES_PER_COPIED_ELEMENT = 28, 8


class Still(SGD):
    """A base that stays where it is: what is left of a peer's step is perturb and restore."""

    def step(self, closure: object = None) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Phases:
    """perturb: gradients in place -> w + epsilon, gradients empty; finish: back to w, and the base's step if any."""

    perturb: Callable[[], object]
    finish: Callable[[], object]


def local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()


class Hand:
    """What somebody who knows torch writes for exactly this: foreach calls, local pieces, one all-reduce, a copy."""

    def __init__(self, params: Sequence[nn.Parameter], base: Optimizer) -> None:
        self.params, self.base = params, base
        with torch.no_grad():
            self.weights = [local(p) for p in params]
        self.saved = [torch.empty_like(w) for w in self.weights]

    @torch.no_grad()
    def perturb(self) -> None:
        grads = [g.to_local() if isinstance(g := p.grad, DTensor) else g for p in self.params]
        norm_sq = torch.stack(torch._foreach_norm(grads)).square().sum()
        if dist.is_initialized():
            dist.all_reduce(norm_sq)
        scale = RHO / (norm_sq.sqrt() + 1e-12)
        torch._foreach_copy_(self.saved, self.weights)
        torch._foreach_add_(self.weights, grads, alpha=scale.item())
        for p in self.params:
            p.grad = None

    @torch.no_grad()
    def finish(self) -> None:
        torch._foreach_copy_(self.weights, self.saved)
        self.base.step()


class LoopSAM:
    """The algorithm of github.com/davda54/sam, written anew: loops over parameters, restored by exchanging storage."""

    def __init__(self, params: Sequence[nn.Parameter], base: Optimizer) -> None:
        self.params, self.base = params, base
        self.old: dict[nn.Parameter, Tensor] = {}

    @torch.no_grad()
    def perturb(self) -> None:
        norms = [p.grad.norm(p=2) for p in self.params if p.grad is not None]
        scale = RHO / (torch.norm(torch.stack(norms), p=2) + 1e-12)
        for p in self.params:
            if p.grad is None:
                continue
            self.old[p] = p.data.clone()
            e_w = p.grad * scale
            p.add_(e_w)
            p.grad = None

    @torch.no_grad()
    def finish(self) -> None:
        for p in self.params:
            p.data = self.old[p]
        self.base.step()


def by_distsam(params: Sequence[nn.Parameter], base: type[SGD]) -> Phases:
    sam = distsam.SAM(base(params, lr=1e-3, momentum=0.9), rho=RHO)
    inside = []

    def perturb() -> None:
        inside.append(sam.perturbed())
        inside[0].__enter__()

    def finish() -> None:
        inside.pop().__exit__(None, None, None)
        if base is not Still:
            sam.step()

    return Phases(perturb, finish)


def by_pytorch_optimizer(params: Sequence[nn.Parameter], base: type[SGD], foreach: bool | None) -> Phases:
    from pytorch_optimizer import SAM

    sam = SAM(params, base, rho=RHO, foreach=foreach, lr=1e-3, momentum=0.9)
    return Phases(lambda: sam.first_step(zero_grad=True), sam.second_step)


def by_class(kind: type[Hand] | type[LoopSAM], params: Sequence[nn.Parameter], base: type[SGD]) -> Phases:
    built = kind(params, base(params, lr=1e-3, momentum=0.9))
    return Phases(built.perturb, built.finish)


CONTENDERS: dict[str, Callable[[Sequence[nn.Parameter], type[SGD]], Phases]] = {
    "hand": lambda params, base: by_class(Hand, params, base),
    "distsam": by_distsam,
    "davda54 style": lambda params, base: by_class(LoopSAM, params, base),
    "pytorch_optimizer foreach": lambda params, base: by_pytorch_optimizer(params, base, True),
    "pytorch_optimizer": lambda params, base: by_pytorch_optimizer(params, base, None),
}


def tensors_of(count: int, shape: tuple[int, ...], seed: int, world: int) -> list[Tensor]:
    """The workload's tensors, the same on every rank; DTensors, Shard(0), if there is a world."""
    generator = torch.Generator().manual_seed(seed)
    whole = [torch.randn(shape, generator=generator) for _ in range(count)]
    if world == 1:
        return whole
    mesh = init_device_mesh("cpu", (world,))
    return [distribute_tensor(t, mesh, [Shard(0)]) for t in whole]


def set_gradients(params: Sequence[nn.Parameter], grads: Sequence[Tensor]) -> None:
    """What a backward leaves."""
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad


@torch.no_grad()
def check(params: Sequence[nn.Parameter], grads: Sequence[Tensor], phases: Phases) -> tuple[float, bool]:
    """||epsilon|| / rho over all ranks, and: are the weights back bit for bit. The first run of a contender."""
    before = [local(p).clone() for p in params]
    set_gradients(params, grads)
    phases.perturb()
    moved = sum((local(p) - w).double().square().sum() for p, w in zip(params, before, strict=True))
    set_gradients(params, grads)
    phases.finish()
    is_back = torch.tensor(float(all(torch.equal(local(p), w) for p, w in zip(params, before, strict=True))))
    if dist.is_initialized():
        dist.all_reduce(moved)
        dist.all_reduce(is_back, op=dist.ReduceOp.MIN)
    return float(moved.sqrt()) / RHO, bool(is_back)


def time_round(params: Sequence[nn.Parameter], grads: Sequence[Tensor], phases: Phases) -> tuple[float, float]:
    """CPU and wall seconds of both phases."""
    cpu = wall = 0.0
    for phase in (phases.perturb, phases.finish):
        set_gradients(params, grads)
        if dist.is_initialized():
            dist.barrier()
        wall_start, cpu_start = time.perf_counter(), time.thread_time()
        phase()
        cpu += time.thread_time() - cpu_start
        wall += time.perf_counter() - wall_start
    return cpu, wall


def copy_seconds(grads: Sequence[Tensor]) -> float:
    """CPU seconds that one copy of this rank's share of the weights takes, as one flat tensor."""
    source = torch.cat([local(g).reshape(-1) for g in grads])
    target = torch.empty_like(source)
    seconds = []
    for _ in range(21):
        start = time.thread_time()
        target.copy_(source)
        seconds.append(time.thread_time() - start)
    return statistics.median(seconds)


def measure(workload: str, base: type[SGD], rounds: int, world: int) -> dict[str, tuple[list[float], list[float]]]:
    """CPU and wall seconds of every round of every contender that runs; prints those that do not."""
    weights, grads = (tensors_of(*WORKLOADS[workload], seed, world) for seed in (0, 1))
    built: dict[str, tuple[list[nn.Parameter], Phases]] = {}
    for name, make in CONTENDERS.items():
        params = [nn.Parameter(w.clone()) for w in weights]
        phases = make(params, base)
        try:
            length, is_back = check(params, grads, phases)
        except RuntimeError as error:
            say(f"  {name:26s} raises: {str(error).splitlines()[0][:80]}")
            continue
        built[name] = (params, phases)
        if base is Still:
            say(f"  {name:26s} length {length:.6f}   exact {'yes' if is_back else 'NO'}")
    seconds: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in built}
    shuffle = random.Random(0)
    for _ in range(rounds):
        for name in shuffle.sample(list(built), len(built)):
            for series, value in zip(seconds[name], time_round(built[name][0], grads, built[name][1]), strict=True):
                series.append(value)
    if base is Still:
        bound = copy_seconds(grads) * BYTES_PER_ELEMENT / BYTES_PER_COPIED_ELEMENT
        median = statistics.median(seconds["distsam"][0])
        say(f"  bound by memory traffic {1e3 * bound:.2f} ms; distsam takes {median / bound:.2f} times that")
    return seconds


def report(seconds: dict[str, tuple[list[float], list[float]]]) -> float:
    """Print the table; the CPU ratio of distsam to `hand`."""
    hand = seconds["hand"]
    ratios = {}
    for name, series in seconds.items():
        cpu, wall = (1e3 * statistics.median(s) for s in series)
        to_hand = [
            statistics.median(x / y for x, y in zip(s, h, strict=True)) for s, h in zip(series, hand, strict=True)
        ]
        ratios[name] = to_hand[0]
        say(f"  {name:26s} {cpu:9.2f} {wall:9.2f} ms {to_hand[0]:9.2f} {to_hand[1]:6.2f}")
    return ratios["distsam"]


def say(line: str) -> None:
    """Print on the first rank."""
    if not dist.is_initialized() or dist.get_rank() == 0:
        print(line, flush=True)


def run(rank: int, world: int, port: int, options: argparse.Namespace) -> None:
    """All that one world measures; exits with 1 where distsam is above the limit."""
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    worst = 0.0
    for workload in options.workloads:
        count, shape = WORKLOADS[workload]
        say(f"\n({workload}) {count} x {shape}, {'plain' if world == 1 else f'DTensor, {world} ranks'}")
        for base, title in ((Still, "perturb + restore"), (SGD, "whole optimizer")):
            seconds = measure(workload, base, options.rounds, world)
            say(f"  {title:26s}       CPU      wall     to hand: CPU   wall")
            ratio = report(seconds)
            worst = max(worst, ratio if base is Still else 0.0)
    if world > 1:
        dist.destroy_process_group()
    if options.limit and worst > options.limit and rank == 0:
        sys.exit(1)


def main() -> None:
    """Read the arguments, start the worlds one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", default=list(WORKLOADS), choices=list(WORKLOADS))
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--world", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--limit", type=float)
    options = parser.parse_args()
    for world in options.world:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        mp.spawn(run, (world, port, options), nprocs=world)


if __name__ == "__main__":
    main()
