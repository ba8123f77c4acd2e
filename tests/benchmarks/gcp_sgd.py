"""CP completion in one process and one thread: seconds until a held-out RMSE is reached, against GenTen's GCP-SGD.

    pip install -e '.[bench]'
    OMP_NUM_THREADS=1 python tests/benchmarks/gcp_sgd.py [--shape 2000,1000,500] [--entries 2000000] [--rank 16]

Values are those of a CP tensor of rank 8 with noise, at random positions. Both sides fit the observed entries alone, by
Adam on batches of one size drawn from them, from random factors; each is tried with every learning rate of --rates, and
the fastest counts. GenTen's solver computes in float64, and gives zeros no weight here, which would be wrong for
entries that are unknown; it is run for 1, 2, 3, 4, 6, 8, ... epochs of so many batches, each time from its start, and
timed as a whole. distsam's steps are timed, in float32 and float64; its held-out RMSE is computed between them, off the
clock.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

import distsam

NOISE, TRUE_RANK = 0.1, 8
NEVER = float("inf")


class Data:
    """Observed and held-out entries of standard deviation 1, and noise."""

    def __init__(self, shape: tuple[int, ...], num_entries: int) -> None:
        rng = np.random.default_rng(0)
        factors = [rng.standard_normal((size, TRUE_RANK)) for size in shape]
        flat = np.unique(rng.integers(np.prod(shape), size=num_entries))
        rng.shuffle(flat)
        indices = np.stack(np.unravel_index(flat, shape), 1)
        values = np.prod([f[indices[:, n]] for n, f in enumerate(factors)], 0).sum(1) / TRUE_RANK**0.5
        values += NOISE * rng.standard_normal(len(values))
        num_held_out = len(values) // 20
        self.shape = shape
        self.held_out, self.held_out_values = indices[:num_held_out], values[:num_held_out]
        self.indices, self.values = indices[num_held_out:], values[num_held_out:]

    def rmse(self, factors: list[np.ndarray]) -> float:
        found = np.prod([f[self.held_out[:, n]] for n, f in enumerate(factors)], 0).sum(1)
        return float(np.sqrt(np.mean((found - self.held_out_values) ** 2)))


def of_distsam(
    data: Data, rank: int, batch: int, rate: float, per_epoch: int, dtype: torch.dtype
) -> Iterator[tuple[float, float, int]]:
    """(seconds of the steps so far, held-out RMSE, epochs) after each epoch."""
    torch.manual_seed(0)
    network = distsam.TensorNetwork(distsam.cp(data.shape, rank), dtype=dtype)
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    indices, values = torch.from_numpy(data.indices), torch.from_numpy(data.values).to(dtype)
    seconds, epochs = 0.0, 0
    while True:
        begin = time.perf_counter()
        for _ in range(per_epoch):
            chosen = torch.randint(len(values), (batch,))
            optimizer.zero_grad()
            loss = (network.at(indices[chosen]) - values[chosen]).square().mean()
            loss.backward()
            optimizer.step()
        seconds += time.perf_counter() - begin
        epochs += 1
        yield seconds, data.rmse([core.detach().double().numpy() for core in network.cores]), epochs


def of_genten(data: Data, rank: int, batch: int, rate: float, per_epoch: int) -> Iterator[tuple[float, float, int]]:
    """(seconds, held-out RMSE, epochs) of one run after the other, each longer than the last."""
    import pygenten

    tensor = pygenten.Sptensor(data.shape, data.indices.astype(np.uint64), data.values)
    samples = {"num_samples_nonzeros_grad": batch, "num_samples_nonzeros_value": batch}
    epochs = 0
    while True:
        epochs += 1 + epochs // 4
        with silence():
            begin = time.perf_counter()
            found, _, _ = pygenten.gcp_sgd(
                tensor,
                rank=rank,
                sampling_type=pygenten.Stratified,
                # None is taken for "as many as nonzeros": one, of no weight.
                num_samples_zeros_grad=1,
                num_samples_zeros_value=1,
                w_g_z=0.0,
                w_f_z=0.0,
                rate=rate,
                maxiters=epochs,
                epoch_iters=per_epoch,
                max_fails=100,
                gcp_tol=-1e300,
                printitn=0,
                **samples,
            )
            seconds = time.perf_counter() - begin
        factors = [np.array(found[n]) for n in range(len(data.shape))]
        factors[0] = factors[0] * np.array(found.weights)
        yield seconds, data.rmse(factors), epochs


@contextmanager
def silence() -> Iterator[None]:
    """What a library prints without asking Python goes nowhere."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def seconds_to(goal: float, runs: Iterator[tuple[float, float, int]], longest_s: float) -> tuple[float, float, float]:
    """(seconds until `goal`, the best RMSE seen, seconds of an epoch)."""
    best, each = NEVER, NEVER
    for seconds, rmse, epochs in runs:
        best, each = min(best, rmse), seconds / epochs
        if best <= goal:
            return seconds, best, each
        if seconds > longest_s or not np.isfinite(rmse):
            break
    return NEVER, best, each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="2000,1000,500")
    parser.add_argument("--entries", type=int, default=2_000_000)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--batch", type=int, default=20_000)
    parser.add_argument("--epoch", type=int, default=50, help="batches between two looks at the held-out entries")
    parser.add_argument("--rates", default="0.01,0.03,0.1")
    parser.add_argument("--goal", type=float, default=0.2, help="held-out RMSE; the noise alone is 0.1")
    parser.add_argument("--longest-s", type=float, default=30.0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = Data(tuple(map(int, given.shape.split(","))), given.entries)
    sides = {
        "distsam float32": lambda rate: of_distsam(data, given.rank, given.batch, rate, given.epoch, torch.float32),
        "distsam float64": lambda rate: of_distsam(data, given.rank, given.batch, rate, given.epoch, torch.float64),
        "GenTen float64": lambda rate: of_genten(data, given.rank, given.batch, rate, given.epoch),
    }
    print(f"{'':<18}{'rate':>8}{'seconds':>10}{'best RMSE':>11}{'s an epoch':>12}")
    fastest = {}
    for name, runs in sides.items():
        for rate in map(float, given.rates.split(",")):
            seconds, best, each = seconds_to(given.goal, runs(rate), given.longest_s)
            fastest[name] = min(fastest.get(name, NEVER), seconds)
            print(f"{name:<18}{rate:>8g}{seconds:>10.2f}{best:>11.3f}{each:>12.3f}", flush=True)
    print(", ".join(f"{name}: {seconds:.2f} s" for name, seconds in fastest.items()))


if __name__ == "__main__":
    main()
