"""The rule behind "auto" against a grid by hand, on tensors that install with distsam or lie in a file.

    python tests/benchmarks/auto_rule.py il2:0.3 covid19_serology:0.8 mine.npy:0.3

For each, one line for every run: bond, decay times the number of training entries, RMSE on validation and held-out
entries (over the standard deviation of the training entries), best step, CPU seconds (the pilot's apart). Plain Adam,
full batch, weights best on validation. kinetic and indian_pines take minutes a run; `--every 3` keeps each third index.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from distsam.tasks.auto import LEARNING_RATE, bond_for
from distsam.tasks.entries import Entries, entries_from_dense
from distsam.tasks.files import read_entries
from distsam.tasks.pilot import choose_decay
from distsam.tasks.scaling import Scaling, spread_of
from distsam.tasks.sources import load_bundled
from distsam.tasks.split import split_entries
from distsam.tensornet import NetworkSpec, TensorNetwork, cp

BONDS, TIMES_N = (10, 30), (0.03, 1.0, 8.0, 40.0)
EVERY, PATIENCE, LIMIT_S = 25, 10, 30.0
Part = tuple[torch.Tensor, torch.Tensor]


def thinned(entries: Entries, every: int) -> Entries:
    """Each `every`-th index of every mode longer than 20."""
    dense = np.full(entries.shape, np.nan)
    dense[tuple(entries.indices.T)] = entries.values
    return entries_from_dense(dense[tuple(slice(None, None, every if size > 20 else 1) for size in dense.shape)])


def parts(entries: Entries, observed: float) -> list[Part]:
    """Training, validation and held-out entries, standardised."""
    split = split_entries(entries, observed, 0.1, seed=0)
    spread = spread_of(entries.values[split.train])
    scaling = Scaling(spread.mean, spread.std)
    return [
        (torch.from_numpy(entries.indices[at]), torch.from_numpy(scaling.learnt(entries.values[at])).float())
        for at in (split.train, split.validation, split.heldout)
    ]


def fit(spec: NetworkSpec, data: list[Part], decay: float) -> str:
    """Train with early stopping; what it came to."""
    network = TensorNetwork(spec, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    adam = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, weight_decay=decay)
    (indices, values), validation, heldout = data
    best, began_s, step = (float("inf"), 0.0, 0), time.process_time(), 0
    while step - best[2] < EVERY * PATIENCE and time.process_time() - began_s < LIMIT_S:
        for _ in range(EVERY):
            adam.zero_grad()
            (network(indices) - values).square().mean().backward()
            adam.step()
        step += EVERY
        with torch.no_grad():
            rmse = [float((network(at) - of).square().mean().sqrt()) for at, of in (validation, heldout)]
        best = min(best, (rmse[0], rmse[1], step))
    seconds = time.process_time() - began_s
    return f"validation {best[0]:.4f}  held out {best[1]:.4f}  step {best[2]:5d}  {seconds:5.1f} s"


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", metavar="NAME:OBSERVED")
    parser.add_argument("--every", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name, _, observed in (one.rpartition(":") for one in options.data):
        entries = thinned(read_entries(name) if Path(name).exists() else load_bundled(name), options.every)
        data = parts(entries, float(observed))
        (indices, values), count = data[0], len(data[0][1])
        bond = bond_for(lambda size, shape=entries.shape: cp(shape, size), count)
        began_s = time.process_time()
        decay = choose_decay(cp(entries.shape, bond), indices.numpy(), values.numpy(), LEARNING_RATE, seed=0)
        pilot_s = time.process_time() - began_s
        print(f"{name} {entries.shape}, {observed} observed, {count} training entries; pilot {pilot_s:.1f} s")
        print(
            f"auto  bond {bond:3d}  decay {decay * count:5.2f}  {fit(cp(entries.shape, bond), data, decay)}", flush=True
        )
        for size, times_n in ((size, times_n) for size in BONDS for times_n in TIMES_N):
            line = fit(cp(entries.shape, size), data, times_n / count)
            print(f"hand  bond {size:3d}  decay {times_n:5.2f}  {line}", flush=True)


if __name__ == "__main__":
    main()
