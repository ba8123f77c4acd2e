"""How the end-to-end tests start distsam: in this process, in another, or in two under torchrun."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import Result
from typer.testing import CliRunner

import distsam
from distsam.cli import app

ROOT = Path(__file__).parents[2]
# A traceback names our files by this; ROOT would name torch's too where the virtual environment lies in the clone.
PACKAGE = Path(distsam.__file__).parent
# What an idle machine does in a tenth of it; the tests of a machine under load must not fail for that.
LIMIT_S = 400.0

SMALL = """
data: {source: lowrank, equation: "ar,br,cr->abc", sizes: {a: 8, b: 6, c: 4, r: 2}, noise: 0.1, observed: 0.6}
network: {format: cp, bond_dim: 2, dtype: float64}
optim: {method: sam+das, base: adam, lr: 0.01, alpha: 0.01}
train: {steps: 20, log_every: 5, checkpoint_every: 5, num_threads: 1}
"""


def small_config(folder: Path) -> Path:
    path = folder / "small.yaml"
    path.write_text(SMALL)
    return path


def from_file(file: Path) -> list[str]:
    """Overrides that give `small_config` the user's file instead of its own tensor."""
    return ["data.source=file", f"data.path={file}", "data.equation=null", "data.sizes=null", "data.noise=0"]


def invoke(*arguments: object) -> Result:
    """`distsam` in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TORCHELASTIC_ERROR_FILE": "", **more}


def alone(*arguments: object) -> list[str]:
    """The command line of one process."""
    return [sys.executable, "-m", "distsam", *map(str, arguments)]


def on_two_ranks(*arguments: object) -> list[str]:
    """The command line of two processes."""
    return [*torchrun(), "-m", "distsam", *map(str, arguments)]


def torchrun(num_ranks: int = 2) -> list[str]:
    """The launcher of so many processes, without what it launches."""
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]


def run(command: list[str], **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=environment(**environ), capture_output=True, text=True, timeout=LIMIT_S, check=False
    )


def assert_one_run_however_it_is_cut(config: Path) -> None:
    """A run of 40 steps is the same in two parts, bit for bit, and on two ranks with sharded weights."""
    for more in (["run.dir=whole"], ["run.dir=parts", "train.steps=20"], ["run.dir=parts", "train.resume=auto"]):
        done = invoke("train", config, *more)
        assert done.exit_code == 0, done.output
    assert_same_weights(Path("whole"), Path("parts"))
    assert timeless(Path("whole")) == timeless(Path("parts"))
    two = run(on_two_ranks("train", config, "run.dir=two", "sharding.plan=fsdp"))
    assert two.returncode == 0, two.stderr
    # In float64 what differs is the order of sums.
    assert_same_weights(Path("whole"), Path("two"), tolerance=1e-9)


def weights(run_dir: Path) -> dict[str, Any]:
    """The last checkpoint's weights and optimizer state, whole."""
    import torch

    from distsam.runs.checkpoints import finished_checkpoints
    from distsam.train.checkpoint_reader import load_tensors, tensor_shapes

    path = finished_checkpoints(run_dir / "checkpoints")[-1]
    tensors = {name: torch.zeros(size, dtype=dtype) for name, (size, dtype) in tensor_shapes(path).items()}
    load_tensors(path, tensors)
    return {"checkpoint": path.name, **{name: tensor.numpy() for name, tensor in tensors.items()}}


def timeless(run_dir: Path) -> list[dict[str, object]]:
    """The rows of a run without the times that no two runs share."""
    from distsam.runs.rows import read_rows

    rows = read_rows(run_dir / "metrics.jsonl")
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows]


def assert_same_weights(one: Path, other: Path, tolerance: float = 0.0) -> None:
    """Bit for bit where the tolerance is 0, else relative to each tensor's largest entry."""
    left, right = weights(one), weights(other)
    assert left.keys() == right.keys()
    assert left.pop("checkpoint") == right.pop("checkpoint")
    for name, value in left.items():
        if tolerance == 0:
            assert value.tobytes() == right[name].tobytes(), name
        else:
            assert np.abs(value - right[name]).max() <= tolerance * np.abs(value).max(), name
