"""Weak and strong scaling of one completion by plan: measured on this machine, and what the planner says of more ranks.

    OMP_NUM_THREADS=1 python tests/benchmarks/scaling.py [--ranks 1,2,4] [--rows 1000000] [--bond-dim 16]
        [--batch 100000] [--figure scaling.png]

A tensor train of rows x 1,000 x 50 is trained by SAM around Adam, `--batch` observations a rank (weak scaling) or in
all (strong scaling, four times as many), one thread a rank. Printed: seconds of a step as measured and as the planner
has them for such ranks, and the efficiency: of weak scaling the time of one rank over that of N, of strong scaling
divided by N again. In the figure: the measured points, hollow where ranks share a core, and lines for what the planner
says of up to 1,024 such ranks that InfiniBand joins, each kind of plan on the mesh that is best for it.
"""

import argparse
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from huge_mode import measure, write_entries

from distsam.sharding import World
from distsam.sharding.planner import Machine, Training, choose_plan
from distsam.sharding.traffic import LINKS
from distsam.train.build import build_model, build_task
from distsam.train.config import Config
from distsam.train.config_file import load_config
from distsam.train.network_uses import seen_uses
from distsam.train.placing import as_copies
from distsam.train.planning import FLOPS_PER_S, MEMORY_BYTES_PER_S, training_of
from distsam.train.settled import settled

CONFIG = """
data: {{source: file, path: {path}, observed: 0.9, validation: 0.001, standardise: false}}
network: {{format: tt, bond_dim: {bond_dim}, init_std: 1.0}}
optim: {{method: sam, base: adam, lr: 0.01, rho: 0.05}}
train: {{steps: {steps}, batch_size: {batch}, log_every: 3, eval_every: null, checkpoint_every: null}}
"""
STEPS = 18
PLANS = ("replicate", "fsdp", "bond", "mode")
STRONG = 4  # times the batch of a rank
MOST_RANKS = 1024


@dataclass(frozen=True)
class Point:
    """Seconds of a step of one plan."""

    plan: str
    num_ranks: int
    step_s: float


class Workload:
    """The completion, in a folder."""

    def __init__(self, folder: Path, rows: int, bond_dim: int) -> None:
        self.folder, self._bond_dim, self._data = folder, bond_dim, folder / "entries.npz"
        self.some_batch = rows // 10
        write_entries(self._data, rows, 2 * rows, 0.0)

    def config(self, batch: int) -> Path:
        """Written anew."""
        path = self.folder / f"config-{batch}.yaml"
        path.write_text(CONFIG.format(path=self._data, bond_dim=self._bond_dim, batch=batch, steps=STEPS))
        return path


def measured(work: Workload, batches: dict[int, int]) -> Iterator[Point]:
    """Of each plan on each number of ranks."""
    for num_ranks, batch in batches.items():
        for plan in PLANS if num_ranks > 1 else PLANS[:1]:
            found = measure(work.config(batch), plan, num_ranks, work.folder)
            if isinstance(found, str):
                print(f"{plan} on {num_ranks}: {found}", flush=True)
            else:
                yield Point(plan, num_ranks, 1 / found.steps_per_s)


def planned(work: Workload, batches: dict[int, int], link: str) -> list[Point]:
    """The same by the planner's formulas, for CPU threads as of this machine."""
    machine = Machine(2**40, LINKS[link], FLOPS_PER_S["cpu"], MEMORY_BYTES_PER_S["cpu"])
    some = work.some_batch
    training, found = training_for(load_config(work.config(some)), machine), []
    for num_ranks, batch in batches.items():
        uses = [replace(use, num_rows=use.num_rows * batch // some) for use in training.uses]
        choice = choose_plan(replace(training, batch=batch, uses=uses), num_ranks, machine)
        for priced in (choice.chosen, *(other for other, _ in choice.others)):
            if priced.candidate.kind in PLANS:
                found.append(Point(priced.candidate.kind, num_ranks, priced.time_s))
    return found


def training_for(config: Config, machine: Machine) -> Training:
    """What the planner has to know of the run, its batch all on one rank."""
    device = torch.device("cpu")
    task = build_task(config, as_copies(World(0, 1, 0, device)), is_planned=True)
    config = settled(config, task)
    [batch] = task.microbatches(0, 1)
    model = build_model(config, task, defers=True)
    uses = seen_uses(task, model, batch, times=1, device=device)
    return training_of(config, model, uses[0].num_rows, machine.link, uses)


def efficiencies(points: Sequence[Point], plan: str, is_strong: bool) -> dict[int, float]:
    """Number of ranks -> of the plan; one rank has no plan."""
    [alone] = [point.step_s for point in points if point.num_ranks == 1]
    ours = {point.num_ranks: point.step_s for point in points if point.plan == plan}
    return {n: alone / step_s / (n if is_strong else 1) for n, step_s in {1: alone, **ours}.items()}


def show(name: str, points: Sequence[Point], by_planner: Sequence[Point], is_strong: bool) -> None:
    print(f"\n{name}\n{'plan':<12}{'ranks':>6}{'measured s':>12}{'planned s':>12}{'efficiency':>12}", flush=True)
    expected = {(point.plan, point.num_ranks): point.step_s for point in by_planner}
    for point in points:
        efficiency = efficiencies(points, point.plan, is_strong)[point.num_ranks]
        mark = "  (oversubscribed)" if point.num_ranks > (os.cpu_count() or 1) else ""
        told = expected.get((point.plan, point.num_ranks), float("nan"))
        print(f"{point.plan:<12}{point.num_ranks:>6}{point.step_s:>12.3f}{told:>12.3f}{efficiency:>12.2f}{mark}")


def draw(path: Path, panels: dict[str, tuple[Sequence[Point], Sequence[Point]]], hardware: str) -> None:
    """A panel each of weak and strong scaling: points as measured, lines as planned."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    cores = os.cpu_count() or 1
    for number, (name, (points, lines)) in enumerate(panels.items()):
        axes = figure.add_subplot(1, 2, number + 1)
        for plan, colour in zip(PLANS, ("C0", "C1", "C2", "C3"), strict=True):
            line = efficiencies(lines, plan, name == "strong")
            axes.plot(list(line), list(line.values()), "--", color=colour, linewidth=1)
            own = efficiencies(points, plan, name == "strong")
            for num_ranks, value in own.items():
                face = colour if num_ranks <= cores else "none"
                label = plan if num_ranks == cores else None
                axes.plot([num_ranks], [value], "o", color=colour, markerfacecolor=face, label=label)
        axes.set(xscale="log", xlabel="ranks", ylabel="efficiency", title=f"{name} scaling", ylim=(0, None))
        axes.set_xticks([4**n for n in range(6)], [str(4**n) for n in range(6)])
        if number == 0:
            figure.legend(loc="outside lower center", ncols=len(PLANS), title=hardware, title_fontsize=8, fontsize=8)
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", default="1,2,4")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--bond-dim", type=int, default=16)
    parser.add_argument("--batch", type=int, default=100_000)
    parser.add_argument("--hardware", default=f"{os.cpu_count()} CPU cores, one thread a rank")
    parser.add_argument("--figure", type=Path)
    given = parser.parse_args()
    ranks = [int(n) for n in given.ranks.split(",")]
    worlds = [2**n for n in range(MOST_RANKS.bit_length())]
    panels = {}
    with TemporaryDirectory() as folder:
        work = Workload(Path(folder), given.rows, given.bond_dim)
        for name, batch_on in {
            "weak": lambda n: n * given.batch,
            "strong": lambda _: STRONG * given.batch,
        }.items():
            batches = {n: batch_on(n) for n in ranks}
            points = list(measured(work, batches))
            show(f"{name} scaling", points, planned(work, batches, "loopback"), name == "strong")
            panels[name] = points, planned(work, {n: batch_on(n) for n in worlds}, "infiniband")
    if given.figure is not None:
        marks = "hollow: ranks share a core; dashed: the planner's, for InfiniBand"
        draw(given.figure, panels, f"filled: measured on {given.hardware}; {marks}")


if __name__ == "__main__":
    main()
