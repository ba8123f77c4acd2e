"""A mode of millions of rows on one, two and four ranks: time of a step and memory, by plan, through `distsam train`.

    OMP_NUM_THREADS=1 python tests/benchmarks/huge_mode.py [--rows 10000000] [--entries 20000000] [--format cp]
        [--bond-dim 16] [--batch 1000000] [--steps 20] [--folder /tmp/huge_mode]

Writes one synthetic file of entries (three modes: rows x 1,000 x 50; every row as often as any other, or by --skew),
and trains it by Adam on each plan and number of ranks, one after the other, each rank with one thread. Printed: steps a
second (the median over the rows of metrics), also as a ratio to one process; seconds before the first step and after
the last; the largest memory that rank 0 has taken. More ranks than cores share them: they are marked. A run that is
refused, because its plan needs more memory than there is, or that the system kills for it, is printed as such.

glibc keeps the memory that it has: by itself it gives every large tensor back to the system, and the time of a step is
that of fresh pages.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

CONFIG = """
data: {{source: file, path: {path}, observed: 0.9, validation: 0.001, standardise: false}}
network: {{format: {format}, bond_dim: {bond_dim}, init_std: 1.0}}
optim: {{method: base, base: adam, lr: 0.01}}
train: {{steps: {steps}, batch_size: {batch}, log_every: {every}, eval_every: null, checkpoint_every: null}}
"""
OTHER_MODES = (1000, 50)


@dataclass(frozen=True)
class Measured:
    """One run: steps a second, seconds of all but the steps, bytes of rank 0."""

    steps_per_s: float
    other_s: float
    peak_bytes: int


def write_entries(path: Path, rows: int, entries: int, skew: float) -> None:
    """Distinct positions with values of a rank-1 tensor and noise, as an .npz file."""
    rng = np.random.default_rng(0)
    shape = (rows, *OTHER_MODES)
    own = rng.zipf(skew, entries) % rows if skew else rng.integers(rows, size=entries)
    flat = np.unique(own * np.prod(OTHER_MODES) + rng.integers(np.prod(OTHER_MODES), size=entries))
    indices = np.stack(np.unravel_index(flat, shape), 1).astype(np.int32)
    values = np.sin(indices[:, 0] % 97) * np.cos(indices[:, 1] % 31) + 0.1 * rng.standard_normal(len(flat))
    np.savez(path, indices=indices, values=values.astype(np.float32), shape=np.array(shape))


KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40), "MALLOC_TOP_PAD_": str(2**26)}


def measure(config: Path, plan: str, num_ranks: int, folder: Path) -> Measured | str:
    """A run in a folder of its own; why not, where it was refused."""
    run = folder / f"{plan}-{num_ranks}"
    shutil.rmtree(run, ignore_errors=True)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks), "-m", "distsam"]
    command = [sys.executable, *launch, "train", str(config), f"sharding.plan={plan}", f"run.dir={run}"]
    begin = time.perf_counter()
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1", **KEEP_MEMORY}
    )
    refusal = re.search(r"distsam: (.* memory .*)", done.stderr)
    if done.returncode and refusal:
        return f"refused: {refusal[1]}"
    if "SIGKILL" in done.stderr:
        return "killed by the system: out of memory"
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
    wall_s = time.perf_counter() - begin
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    summary: dict[str, Any] = json.loads((run / "summary.json").read_text())
    rates = [row["time/steps_per_s"] for row in rows[2:] if row.get("time/steps_per_s")]
    return Measured(statistics.median(rates), wall_s - summary["wall_s"], summary["peak_memory_bytes"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--entries", type=int, default=20_000_000)
    parser.add_argument("--format", choices=("cp", "tt"), default="cp")
    parser.add_argument("--bond-dim", type=int, default=16)
    parser.add_argument("--batch", type=int, default=1_000_000)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--skew", type=float, default=0.0, help="Zipf's exponent, above 1; 0: uniform")
    parser.add_argument("--ranks", default="1,2,4")
    parser.add_argument("--plans", default="replicate,mode")
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        data = folder / f"entries-{given.rows}-{given.entries}-{given.skew:g}.npz"
        if not data.exists():
            write_entries(data, given.rows, given.entries, given.skew)
        config = folder / "config.yaml"
        sizes = {"format": given.format, "bond_dim": given.bond_dim, "steps": given.steps, "batch": given.batch}
        config.write_text(CONFIG.format(path=data, every=max(1, given.steps // 4), **sizes))
        compare(config, [int(n) for n in given.ranks.split(",")], given.plans.split(","), folder)


def compare(config: Path, ranks: list[int], plans: list[str], folder: Path) -> None:
    """One line a run, as it ends; ratios to one process."""
    alone: Measured | None = None
    print(f"{'plan':<12}{'ranks':>6}{'steps/s':>10}{'ratio':>8}{'other s':>9}{'GiB of rank 0':>15}", flush=True)
    for num_ranks in ranks:
        for plan in plans if num_ranks > 1 else plans[:1]:
            found = measure(config, plan, num_ranks, folder)
            if isinstance(found, str):
                print(f"{plan:<12}{num_ranks:>6}  {found}", flush=True)
                continue
            alone = alone or found
            mark = "  (oversubscribed)" if num_ranks > (os.cpu_count() or 1) else ""
            print(
                f"{plan:<12}{num_ranks:>6}{found.steps_per_s:>10.3f}{found.steps_per_s / alone.steps_per_s:>8.2f}"
                f"{found.other_s:>9.1f}{found.peak_bytes / 2**30:>15.2f}{mark}",
                flush=True,
            )


if __name__ == "__main__":
    main()
