"""Alternating least squares in one process and one thread: COVID-19 against tensorly's, and a sweep of a large tensor.

    pip install -e '.[bench]'
    OMP_NUM_THREADS=1 python tests/benchmarks/als.py [--repeats 7] [--rank 3] [--entries 0]

COVID-19 serology, 30 % observed: seconds until the held-out R2 is 0.65. Both sides fit a CP tensor of one rank to the
same entries from the same random factors (uniform from 0 to 1, as tensorly draws them; distsam's own start, of both
signs, takes twice the sweeps or more), for as many iterations as that takes, found before; each L2 term of --decays and
--regs is tried and the fastest counts. Data, split, start and, for distsam, the sorted entries are made before the
clock runs. distsam's steps are those of `distsam train`, with the pass that measures the gradient; the sweeps alone are
shown too. tensorly's `parafac(mask=...)` fills in the missing entries and fits all. The two take turns, so that a
machine that gets slower slows both.

With --entries 20000000: one sweep of a CP network of bond 16 over so many entries of a tensor of 100,000 x 100,000 x
100,000, beside an epoch of Adam on batches of 20,000 entries, distsam's (DISTSAM_KERNELS=numba too) and that of
pygenten's GCP-SGD. Of an epoch 20 and 60 batches are run; their difference is scaled up.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from gcp_sgd import silence

import distsam
from distsam.optim import ALS, Plain
from distsam.tasks.completion import CompletionTask
from distsam.tasks.sources import load_bundled
from distsam.tasks.split import split_entries
from distsam.tasks.task import TaskContext
from distsam.tensornet.kernels import KERNELS

GOAL, MOST = 0.65, 40


def covid(rank: int) -> CompletionTask:
    """What `distsam train` builds for data.source=covid19_serology."""
    entries = load_bundled("covid19_serology")
    split = split_entries(entries, 0.3, 0.0, None, 0)
    return CompletionTask(TaskContext(), entries, split, distsam.cp(entries.shape, rank), standardise=True)


def start(task: CompletionTask, rank: int) -> list[np.ndarray]:
    """Factors that both sides begin with."""
    rng = np.random.RandomState(0)
    return [rng.random_sample((size, rank)) for size in task.entries.shape]


def of_distsam(task: CompletionTask, decay: float, sweeps: int) -> tuple[float, float, float]:
    """(seconds of so many steps, of them in sweeps, held-out R2)."""
    network, known = task.build_model(), task.observations()
    network.load_cores([torch.from_numpy(factor) for factor in start(task, task.spec.size(task.spec.bonds[0]))])
    [cores] = distsam.core_networks(network)
    als = TimedALS(cores, known.indices, known.targets, known.factor, weight_decay=decay)
    optimizer = Plain(als)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        [piece] = task.microbatches(0, 1)
        loss = task.loss(network, piece)
        loss.backward()
        return loss

    begin = time.perf_counter()
    for _ in range(sweeps):
        optimizer.step(closure)
    seconds = time.perf_counter() - begin
    return seconds, als.seconds, task.evaluate(network)["heldout/r2"] or 0.0


class TimedALS(ALS):
    """Counts the seconds of its sweeps."""

    seconds = 0.0

    def step(self, closure: Any = None) -> Any:
        """A sweep."""
        begin = time.perf_counter()
        super().step(closure)
        self.seconds += time.perf_counter() - begin


def of_tensorly(task: CompletionTask, rank: int, reg: float) -> Callable[[int], tuple[float, float]]:
    """Iterations -> (seconds, held-out R2)."""
    from tensorly import cp_to_tensor
    from tensorly.cp_tensor import CPTensor
    from tensorly.decomposition import parafac

    entries, train, held_out = task.entries, task.split.train, task.split.heldout
    mask, dense = np.zeros(entries.shape), np.zeros(entries.shape)
    place = tuple(entries.indices[train].T)
    mask[place], dense[place] = 1.0, task.scaling.learnt(entries.values[train])
    truth = task.scaling.learnt(entries.values[held_out])

    def run(iterations: int) -> tuple[float, float]:
        init = CPTensor((np.ones(rank), start(task, rank)))
        begin = time.perf_counter()
        found = parafac(dense, rank, n_iter_max=iterations, init=init, tol=0, mask=mask, l2_reg=reg)
        seconds = time.perf_counter() - begin
        error = cp_to_tensor(found)[tuple(entries.indices[held_out].T)] - truth
        return seconds, 1 - float(np.sum(error**2) / np.sum((truth - truth.mean()) ** 2))

    return run


def fastest(runs: dict[float, Callable[[int], tuple[float, ...]]]) -> tuple[float, int]:
    """The setting that comes to the goal first, and after how many iterations; infinity where none does."""
    found = []
    for setting, run in runs.items():
        for iterations in range(1, MOST + 1):
            if run(iterations)[-1] >= GOAL:
                found.append((min(run(iterations)[0] for _ in range(3)), iterations, setting))
                break
    return min(found)[:0:-1] if found else (float("inf"), 0)  # type: ignore[return-value]


def compare_on_covid(rank: int, repeats: int, decays: list[float], regs: list[float]) -> None:
    """Print seconds and the ratio."""
    task = covid(rank)
    ours = {decay: partial(of_distsam, task, decay) for decay in decays}
    theirs = {reg: of_tensorly(task, rank, reg) for reg in regs}
    (decay, sweeps), (reg, iterations) = fastest(ours), fastest(theirs)
    if not (sweeps and iterations):
        print(f"rank {rank}: {sweeps} sweeps, {iterations} iterations of tensorly; 0: does not come to {GOAL}")
        return
    taken = [(*ours[decay](sweeps)[:2], theirs[reg](iterations)[0]) for _ in range(repeats)]
    steps, alone, tensorly = (1e3 * statistics.median(times) for times in zip(*taken, strict=True))
    print(
        f"rank {rank}: distsam {steps:.1f} ms ({alone:.1f} in {sweeps} sweeps), decay {decay:g}; tensorly "
        f"{tensorly:.1f} ms, {iterations} iterations, l2_reg {reg:g}; ratio {steps / tensorly:.2f}, of the sweeps "
        f"alone {alone / tensorly:.2f}"
    )


def time_a_large_sweep(num_entries: int) -> None:
    """Print seconds of a sweep and of an epoch of Adam."""
    generator = torch.Generator().manual_seed(0)
    shape, batch = (100_000,) * 3, 20_000
    indices = torch.stack([torch.randint(size, (num_entries,), generator=generator) for size in shape], 1)
    values = torch.randn(num_entries, generator=generator)
    network = distsam.TensorNetwork(distsam.cp(shape, 16), generator=generator)
    [cores] = distsam.core_networks(network)
    begin = time.perf_counter()
    als = ALS(cores, indices, values, 1 / num_entries, weight_decay=1e-8)
    print(f"{num_entries} entries: sorted in {time.perf_counter() - begin:.1f} s", flush=True)
    for name in ("first sweep", "sweep"):
        begin = time.perf_counter()
        als.step()
        print(f"{num_entries} entries: {name} {time.perf_counter() - begin:.1f} s", flush=True)
    adam = torch.optim.Adam(network.parameters(), lr=0.01)

    def steps(count: int) -> None:
        for step in range(count):
            own = slice(step * batch, (step + 1) * batch)
            adam.zero_grad()
            (network.at(indices[own]) - values[own]).square().mean().backward()
            adam.step()

    for kernels in ("torch", "numba"):
        os.environ[KERNELS] = kernels
        print(f"an epoch of Adam, {kernels}: {epoch(steps, num_entries // batch):.1f} s", flush=True)
    print(f"an epoch of pygenten's Adam: {epoch(genten(indices, values, batch), num_entries // batch):.1f} s")


def epoch(steps: Callable[[int], None], num_batches: int) -> float:
    """Seconds of an epoch of so many batches: what is done once in a run is left out."""
    seconds = []
    steps(1)
    for count in (20, 60):
        begin = time.perf_counter()
        steps(count)
        seconds.append(time.perf_counter() - begin)
    return (seconds[1] - seconds[0]) / 40 * num_batches


def genten(indices: torch.Tensor, values: torch.Tensor, batch: int) -> Callable[[int], None]:
    """So many steps of GCP-SGD on the same entries, float64."""
    with silence():
        import pygenten
    tensor = pygenten.Sptensor((100_000,) * 3, indices.numpy().astype(np.uint64), values.double().numpy())

    def steps(count: int) -> None:
        with silence():
            pygenten.gcp_sgd(
                tensor,
                rank=16,
                sampling_type=pygenten.Stratified,
                num_samples_nonzeros_grad=batch,
                num_samples_nonzeros_value=batch,
                num_samples_zeros_grad=1,
                num_samples_zeros_value=1,
                w_g_z=0.0,
                w_f_z=0.0,
                rate=0.01,
                maxiters=1,
                epoch_iters=count,
                gcp_tol=-1e300,
                printitn=0,
            )

    return steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--rank", default="2,3,5", help="of the CP tensor")
    parser.add_argument("--decays", default="0.001,0.002,0.003,0.005")
    parser.add_argument("--regs", default="0,0.1,1,10")
    parser.add_argument("--entries", type=int, default=0, help="of the large tensor; 0: COVID-19")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.entries:
        time_a_large_sweep(given.entries)
        return
    for rank in map(int, given.rank.split(",")):
        decays, regs = (list(map(float, text.split(","))) for text in (given.decays, given.regs))
        compare_on_covid(rank, given.repeats, decays, regs)


if __name__ == "__main__":
    main()
