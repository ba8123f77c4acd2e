"""rho and alpha by auto beside the best of a grid and beside no SAM: held-out R2 on four real tensors, 30 % observed.

    OMP_NUM_THREADS=1 python tests/benchmarks/auto_radius.py [--sets covid,il2,kinetic,pines] [--methods sam,das]

Of each method the grid 0.001 to 1 in seven steps; "tuned" is the value whose validation R2, the mean over seeds of the
best of a run, is largest. All arms share data, split, start, Adam, its rate, decay and steps; a run's score is the
held-out R2 at its best validation step. The seeds are not those on which the constants of the rules were chosen (0-2).
--decay 0 takes the L2 term away, with which the plain optimizer does well. About fifteen minutes on one free core.
"""

import argparse
import statistics
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distsam.errors import TrainingDiverged
from distsam.sharding import Layout
from distsam.tasks.sources import load_bundled
from distsam.train.auto_values import auto_values
from distsam.train.build import build_model, build_optimizer, build_task
from distsam.train.config import validate
from distsam.train.settled import with_values

GRID = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
KEYS = {"sam": "rho", "das": "alpha", "nbar": "alpha", "obar": "alpha"}
EVERY = 25
# Name -> source, every n-th index of each mode, network, L2, steps.
SETS: dict[str, tuple[str, tuple[int, ...], dict[str, Any], float, int]] = {
    "covid": ("covid19_serology", (1, 1, 1), {"format": "tucker", "ranks": [8, 6, 8]}, 0.003, 500),
    "il2": ("il2", (1, 1, 1, 1), {"format": "cp", "bond_dim": 3}, 0.003, 600),
    "kinetic": ("kinetic", (4, 1, 1, 3), {"format": "tt", "bond_dim": 4}, 0.001, 300),
    "pines": ("indian_pines", (4, 4, 5), {"format": "tucker", "ranks": [12, 12, 6]}, 0.001, 300),
}
# Value (0 for none), validation R2, held-out R2.
Run = tuple[float, float, float]


def write_subsample(name: str, folder: Path) -> Path:
    """Every n-th index of each mode, missing entries as NaN."""
    source, steps, *_ = SETS[name]
    entries = load_bundled(source)
    dense = np.full(entries.shape, np.nan)
    dense[tuple(entries.indices.T)] = entries.values
    file = folder / f"{name}.npy"
    np.save(file, dense[tuple(slice(None, None, step) for step in steps)])
    return file


def train(name: str, file: Path, seed: int, method: str, value: float | str, decay: float | None) -> Run:
    """One run; a run that diverges has R2 of minus infinity."""
    _, _, network, own_decay, num_steps = SETS[name]
    optim = {"method": method, "lr": 0.01, "weight_decay": own_decay if decay is None else decay}
    config = validate(
        {
            "run": {"seed": seed},
            "data": {"source": "file", "path": str(file), "observed": 0.3, "validation": 0.1},
            "network": network,
            "optim": optim | ({KEYS[method]: value} if method in KEYS else {}),
            "train": {"steps": num_steps},
        }
    )
    task = build_task(config, Layout.alone("cpu"))
    model = build_model(config, task)
    auto = auto_values(config, model)
    optimizer = build_optimizer(with_values(config, {f"optim.{key}": value for key, value in auto.items()}), model)
    best = (-float("inf"), -float("inf"))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = task.loss(model, task.microbatches(step, 1)[0])
        loss.backward()
        return loss

    for step in range(num_steps):
        try:
            optimizer.step(closure)
        except TrainingDiverged:
            break
        if (step + 1) % EVERY == 0:
            with torch.no_grad():
                scores = task.evaluate(model)
            best = max(best, (scores["validation/r2"] or best[0], scores["heldout/r2"] or best[1]))
    used = next(iter(auto.values()), value)
    return (used if isinstance(used, float) else 0.0, *best)


def mean(numbers: Iterable[float]) -> float:
    return statistics.fmean(numbers)


def difference(left: list[Run], right: list[Run]) -> str:
    """Of held-out R2, seed by seed: mean and standard deviation."""
    pairs = [a[2] - b[2] for a, b in zip(left, right, strict=True)]
    return f"{mean(pairs):+.4f} +- {statistics.stdev(pairs):.4f}" if len(pairs) > 1 else f"{pairs[0]:+.4f}"


def lines(name: str, file: Path, methods: list[str], seeds: list[int], decay: float | None) -> Iterator[str]:
    base = [train(name, file, seed, "base", 0.0, decay) for seed in seeds]
    for method in methods:
        auto = [train(name, file, seed, method, "auto", decay) for seed in seeds]
        runs = {value: [train(name, file, seed, method, value, decay) for seed in seeds] for value in GRID}
        tuned = max(runs, key=lambda value: mean(run[1] for run in runs[value]))
        good = [f"{value:g}" for value in GRID if mean(r[2] for r in runs[value]) > mean(b[2] for b in base) - 0.005]
        number = mean(run[0] for run in auto)
        yield (
            f"{name:8s}{method:5s} {number:7.4f} {tuned:7.3f} {number / tuned:9.2f}   "
            f"{mean(b[2] for b in base):.4f} {mean(a[2] for a in auto):.4f} {mean(r[2] for r in runs[tuned]):.4f}   "
            f"{difference(auto, base)}   {difference(auto, runs[tuned])}   {good[0] + '-' + good[-1] if good else '-'}"
        )


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--methods", default=",".join(KEYS))
    parser.add_argument("--seeds", default="10,11,12")
    parser.add_argument("--decay", type=float, default=None)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "set     method   auto   tuned auto/tuned   held-out R2: base, auto, tuned   auto - base   auto - tuned   "
        "grid values within 0.005 of base or above",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        for name in given.sets.split(","):
            file = write_subsample(name, Path(folder))
            seeds = [int(seed) for seed in given.seeds.split(",")]
            for line in lines(name, file, given.methods.split(","), seeds, given.decay):
                print(line, flush=True)


if __name__ == "__main__":
    main()
