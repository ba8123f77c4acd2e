"""Layers, entries and look-ups beside the libraries that have them: forward + backward, time and memory as ratios.

    pip install -e '.[dev,bench]'
    OMP_NUM_THREADS=1 python tests/benchmarks/peers.py [--rows linear_1024 ...] [--rounds 9] [--markdown]

All contenders of a row run in turn in every round, on one thread, with numbers of one size; printed are the medians of
thread CPU time, the median over rounds of the ratio distsam / peer, and the peak of what one step allocates (torch's
allocations only: numpy's are not seen). A peer that is not installed is named and left out. With --check the exit code
is 1 where distsam is slower than a peer.
"""

import argparse
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

import distsam
from distsam.tensornet.kernels import KERNELS
from distsam.tensornet.layers import TensorizedEmbedding, TensorizedLinear

Step = Callable[[], Any]
Made = tuple[str, Callable[[], Step]]


def step_of(forward: Callable[[], Tensor], leaves: Sequence[Tensor]) -> Step:
    weights: list[Tensor] = []

    def step() -> None:
        for leaf in leaves:
            leaf.grad = None
        result = forward()
        if not weights:
            weights.append(torch.randn(result.shape))
        result.backward(weights[0])

    return step


FUSED = "distsam, DISTSAM_KERNELS=numba"


def fused(step: Step) -> Step:
    def run() -> None:
        os.environ[KERNELS] = "numba"
        try:
            step()
        finally:
            del os.environ[KERNELS]

    return run


# ---------------------------------------------------------------- layers
def layer_step(module: nn.Module, size: int, batch: int) -> Step:
    with torch.no_grad():
        for parameter in module.parameters():
            # Numbers of one size for all: the starts of one peer are so small that products of them vanish.
            parameter.normal_(0, 0.3)
    x = torch.randn(batch, size, requires_grad=True)
    return step_of(lambda: module(x), [*module.parameters(), x])


def ours(shape: tuple[int, ...], format: str, rank: int, batch: int) -> Step:
    size = prod(shape)
    layer = TensorizedLinear(size, size, bias=False, format=format, rank=rank, out_shape=shape, in_shape=shape)
    return layer_step(layer, size, batch)


def tltorch(shape: tuple[int, ...], factorization: str, rank: Any, implementation: str, batch: int) -> Step:
    import tltorch

    layer = tltorch.FactorizedLinear(
        shape, shape, bias=False, factorization=factorization, rank=rank, implementation=implementation
    )
    return layer_step(layer, prod(shape), batch)


def torchtt(shape: tuple[int, ...], rank: int, batch: int) -> Step:
    import torchtt

    size = prod(shape)
    layer = torchtt.nn.LinearLayerTT(list(shape), list(shape), [1] + [rank] * (len(shape) - 1) + [1])
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(0, 0.3)
    x = torch.randn(batch, size, requires_grad=True)
    return step_of(lambda: layer(x.view(-1, *shape)).reshape(batch, -1), [*layer.parameters(), x])


def train_layer(shape: tuple[int, ...], rank: int, batch: int) -> Iterator[Made]:
    size = prod(shape)
    ranks = (1, *[rank] * (len(shape) - 1), 1)
    yield "distsam", lambda: ours(shape, "tt_matrix", rank, batch)
    for implementation in ("factorized", "reconstructed"):
        yield f"tltorch {implementation}", lambda i=implementation: tltorch(shape, "blocktt", ranks, i, batch)
    yield "torchTT", lambda: torchtt(shape, rank, batch)
    yield "dense", lambda: layer_step(nn.Linear(size, size, bias=False), size, batch)


def cp_layer(shape: tuple[int, ...], rank: int, batch: int) -> Iterator[Made]:
    yield "distsam", lambda: ours(shape, "cp", rank, batch)
    yield "tltorch factorized", lambda: tltorch(shape, "cp", rank, "factorized", batch)


def tucker_layer(shape: tuple[int, ...], rank: int, batch: int) -> Iterator[Made]:
    yield "distsam", lambda: ours(shape, "tucker", rank, batch)
    yield "tltorch factorized", lambda: tltorch(shape, "tucker", (rank,) * 2 * len(shape), "factorized", batch)


# ---------------------------------------------------------------- entries
def entries(spec: distsam.NetworkSpec, count: int = 100_000) -> Iterator[Made]:
    generator = torch.Generator().manual_seed(0)
    indices = torch.stack([torch.randint(size, (count,), generator=generator) for size in spec.shape], 1)
    network = distsam.TensorNetwork(spec, generator=generator)

    def start() -> list[Tensor]:
        return [core.detach().clone().requires_grad_() for core in network.cores]

    yield "distsam", lambda: step_of(lambda: network.at(indices), list(network.cores))
    yield FUSED, lambda: fused(step_of(lambda: network.at(indices), list(network.cores)))
    for name, evaluate in entry_peers(spec, indices):
        yield name, lambda e=evaluate: _entry_step(e, start())
    if spec.format == "cp":
        yield "pyttb (float64)", lambda: pyttb_step(network, indices)


def _entry_step(evaluate: Callable[[list[Tensor]], Tensor], cores: list[Tensor]) -> Step:
    return step_of(lambda: evaluate(cores), cores)


def entry_peers(spec: distsam.NetworkSpec, indices: Tensor) -> Iterator[tuple[str, Callable[[list[Tensor]], Tensor]]]:
    def train(cores: list[Tensor]) -> list[Tensor]:
        return [cores[0].unsqueeze(0), *cores[1:-1], cores[-1].unsqueeze(-1)]

    def torchtt_at(cores: list[Tensor]) -> Tensor:
        import torchtt

        return torchtt.TT(train(cores)).apply_mask(indices)

    def tntorch_at(cores: list[Tensor]) -> Tensor:
        import tntorch

        values = tntorch.Tensor(train(cores) if spec.format == "tt" else cores)[indices]
        return values if isinstance(values, Tensor) else values.torch()

    def tensorly_at(cores: list[Tensor]) -> Tensor:
        import tensorly as tl

        tl.set_backend("pytorch")
        if spec.format == "tucker":
            whole = tl.tucker_to_tensor((cores[0], cores[1:]))
        elif spec.format == "cp":
            whole = tl.cp_to_tensor((None, cores))
        else:
            whole = tl.tt_to_tensor(train(cores)) if spec.format == "tt" else tl.tr_to_tensor(cores)
        return whole[tuple(indices.unbind(1))]

    if spec.format == "tt":
        yield "torchTT", torchtt_at
    if spec.format in ("tt", "cp"):
        yield "tntorch", tntorch_at
    yield "tensorly", tensorly_at


def pyttb_step(network: distsam.TensorNetwork, indices: Tensor) -> Step:
    import numpy as np
    import pyttb
    from pyttb.gcp import fg_est, handles

    factors = [core.detach().double().numpy().copy() for core in network.cores]
    model = pyttb.ktensor(factors, np.ones(factors[0].shape[1]))
    where, values, ones = indices.numpy(), np.random.default_rng(0).standard_normal(len(indices)), np.ones(len(indices))
    return lambda: fg_est.estimate(model, where, values, ones, handles.gaussian, handles.gaussian_grad)


# ---------------------------------------------------------------- look-ups
ROWS, DIM = (100, 100, 100), (4, 4, 4)


def lookups(skewed: bool, count: int = 4096) -> Iterator[Made]:
    import numpy as np

    size, rng = prod(ROWS), np.random.default_rng(0)
    drawn = np.minimum(rng.zipf(1.2, count) - 1, size - 1) if skewed else rng.integers(0, size, count)
    ids = torch.as_tensor(drawn)

    def mine() -> Step:
        arguments = {"format": "tt_matrix", "rank": 16, "out_shape": ROWS, "in_shape": DIM}
        table = TensorizedEmbedding(size, prod(DIM), **arguments)
        return step_of(lambda: table(ids), list(table.parameters()))

    def theirs() -> Step:
        import tltorch

        table = tltorch.FactorizedEmbedding(
            size,
            prod(DIM),
            auto_tensorize=False,
            tensorized_num_embeddings=ROWS,
            tensorized_embedding_dim=DIM,
            factorization="blocktt",
            rank=16,
        )
        with torch.no_grad():
            for parameter in table.parameters():
                parameter.normal_(0, 0.3)
        return step_of(lambda: table(ids), list(table.parameters()))

    yield "distsam", mine
    yield "tltorch", theirs


# Name -> what it is, and who takes part.
TABLE: dict[str, tuple[str, Callable[[], Iterator[Made]]]] = {
    "linear_1024": ("TT-matrix 1024 (4^5), bond 16, batch 256", lambda: train_layer((4,) * 5, 16, 256)),
    "linear_1024_64": ("the same, batch 64", lambda: train_layer((4,) * 5, 16, 64)),
    "linear_1024_1024": ("the same, batch 1024", lambda: train_layer((4,) * 5, 16, 1024)),
    "linear_4096": ("TT-matrix 4096 (8^4), bond 32, batch 256", lambda: train_layer((8,) * 4, 32, 256)),
    "cp_1024": ("CP 1024, rank 16", lambda: cp_layer((4,) * 5, 16, 256)),
    "cp_1024_same": ("CP 1024, rank 320 (parameters of the TT)", lambda: cp_layer((4,) * 5, 320, 256)),
    "cp_4096": ("CP 4096, rank 32", lambda: cp_layer((8,) * 4, 32, 256)),
    "cp_4096_same": ("CP 4096, rank 2112 (parameters of the TT)", lambda: cp_layer((8,) * 4, 2112, 256)),
    "tucker_4096": ("Tucker 4096, ranks 4", lambda: tucker_layer((8,) * 4, 4, 256)),
    **{
        f"{format}_{'x'.join(map(str, shape))}_{bond}": (
            f"100k entries, {format} {shape[0]}^{len(shape)}, bond {bond}",
            lambda f=format, s=shape, b=bond: entries(getattr(distsam, f)(s, [b] * len(s) if f == "tucker" else b)),
        )
        for shape in ((200,) * 3, (60,) * 4)
        for bond in (10, 20)
        for format in ("tt", "tr", "tucker", "cp")
    },
    "embedding": ("4096 rows of TT 1M x 64, bond 16, uniform", lambda: lookups(False)),
    "embedding_zipf": ("the same, Zipf 1.2", lambda: lookups(True)),
}


def peak_bytes(step: Step) -> int:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    events = [(e.start_ns(), e.nbytes()) for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for _, number in sorted(events, key=lambda event: event[0]):
        live += number
        peak = max(peak, live)
    return peak


def measure(what: str, made: Iterator[Made], rounds: int, markdown: bool) -> bool:
    """Prints one row; True where no peer is faster."""
    steps: dict[str, Step] = {}
    for name, build in made:
        try:
            steps[name] = build()
            steps[name]()
        except ImportError as error:
            print(f"note: {name} is left out ({error})", file=sys.stderr)
            steps.pop(name, None)
    peaks = {name: peak_bytes(step) / 2**20 for name, step in steps.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.thread_time()
            steps[name]()
            times[name].append(1e3 * (time.thread_time() - start))
    ratios = {
        name: statistics.median(mine / theirs for mine, theirs in zip(times["distsam"], times[name], strict=True))
        for name in names[1:]
    }
    ms = {name: statistics.median(times[name]) for name in names}
    if markdown:
        cells = ", ".join(f"{name} {ms[name]:.1f} ({peaks[name]:.0f}): **{ratios[name]:.2f}**" for name in names[1:])
        print(f"| {what} | {ms['distsam']:.1f} ({peaks['distsam']:.0f}) | {cells} |", flush=True)
    else:
        print(f"{what}: distsam {ms['distsam']:.2f} ms, {peaks['distsam']:.1f} MiB")
        for name in names[1:]:
            print(f"    {name:24} {ms[name]:9.2f} ms {peaks[name]:8.1f} MiB   ratio {ratios[name]:.2f}", flush=True)
    return all(ratio <= 1 for name, ratio in ratios.items() if name not in (FUSED, "dense"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=list(TABLE), choices=list(TABLE))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--markdown", action="store_true", help="print the rows of a table")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a peer is faster")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of the peers
    slower = []
    for row in arguments.rows:
        torch.manual_seed(0)
        what, make = TABLE[row]
        if not measure(what, make(), arguments.rounds, arguments.markdown):
            slower.append(row)
    if arguments.check and slower:
        sys.exit(f"slower than a peer: {', '.join(slower)}")


if __name__ == "__main__":
    main()
