"""A network that one process has not the memory for, and four have: each process may take so much, and no more."""

import re
from pathlib import Path

import numpy as np
from command_line import run, torchrun

# 16.5 million parameters. With the gradients of SAM's two passes, Adam's two numbers, SAM's copy, and that of the best
# weights, 462 MB in float32.
LARGE = """
data: {source: file, path: FOLDER/entries.npz}
network: {format: tt, bond_dim: 500}
optim: {method: sam, base: adam, lr: 0.001}
train: {steps: 3, batch_size: 8, log_every: 1, checkpoint_every: null, num_threads: 1}
sharding: {device: cpu}
"""
SHAPE = (512, 64, 512)
NUM_PARAMETERS = 512 * 500 + 500 * 64 * 500 + 500 * 512
ALLOWANCE = 420 * 2**20
# What the libraries take is theirs; whatever is asked for later counts, threads' stacks too.
ENTRY = f"""
import re, resource
from pathlib import Path
import distsam.train, distsam.train.run, matplotlib.pyplot
from distsam.cli import main
taken = 1024 * int(re.search(r"VmData:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
resource.setrlimit(resource.RLIMIT_DATA, (taken + {ALLOWANCE},) * 2)
main()
"""


def train(folder: Path, num_ranks: int, *overrides: str) -> tuple[int, str, str]:
    (folder / "entry.py").write_text(ENTRY)
    (folder / "large.yaml").write_text(LARGE.replace("FOLDER", str(folder)))
    rng = np.random.default_rng(0)
    indices, values = np.unique(rng.integers(SHAPE, size=(100, 3)), axis=0), rng.standard_normal(100)
    np.savez(folder / "entries.npz", indices=indices, values=values[: len(indices)], shape=np.array(SHAPE))
    more = ["train", str(folder / "large.yaml"), f"run.dir={folder}/run-{num_ranks}", *overrides]
    # An arena of its own for every thread would count the memory that none of them uses; and so would what glibc keeps
    # once it has seen a large tensor go: 280 MiB are asked for at most, and 350 to 420, by chance, without this.
    allocator = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(2**20)}
    done = run([*torchrun(num_ranks), str(folder / "entry.py"), *more], **allocator)
    return done.returncode, done.stdout, done.stderr


def test_a_network_too_large_for_one_process_trains_on_four(tmp_path: Path) -> None:
    assert 7 * 4 * NUM_PARAMETERS > ALLOWANCE > 2 * 7 * NUM_PARAMETERS
    code, _, said = train(tmp_path, 1, "sharding.fits=ignore")
    assert code != 0
    assert re.search(r"can't allocate memory|MemoryError|Cannot allocate memory", said), said
    # The plan that auto takes of what fits; the rest is for activations, and for a checkpoint that is being written.
    code, out, said = train(tmp_path, 4, f"sharding.memory_gib={ALLOWANCE / 2 / 2**30}")
    assert code == 0, said
    assert "plan bond on 4 ranks by auto" in out
    assert (tmp_path / "run-4" / "summary.json").exists()
    code, _, said = train(tmp_path, 1, f"sharding.memory_gib={ALLOWANCE / 2**30}", f"run.dir={tmp_path}/refused")
    assert code != 0
    assert "no plan fits on 1 rank: start more" in said
