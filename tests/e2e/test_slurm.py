"""`srun distsam train` and `sbatch slurm/train.sbatch`, on a real Slurm of two nodes."""

import json
import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from slurm_cluster import SlurmCluster, what_is_missing

REPOSITORY = Path(__file__).parents[2]
# Starting the ranks takes most of it; on an idle machine they end in a fifth of this.
JOB_S = 120.0

pytestmark = pytest.mark.skipif(what_is_missing() is not None, reason=str(what_is_missing()))


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    with SlurmCluster() as running:
        yield running


def environment() -> dict[str, str]:
    """What makes `python` and `distsam` on the nodes those of this test."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    # The nodes share this machine's name, which need not resolve.
    return {"PATH": path, "OMP_NUM_THREADS": "1", "NPROC": "1", "LOCAL_ADDR": "localhost"}


def short_run(folder: Path) -> list[str]:
    return ["configs/quickstart.yaml", "train.steps=4", "train.log_every=2", f"run.dir={folder}"]


def summary_of(folder: Path) -> dict[str, object]:
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.parametrize("engine", [[], ["engine.kind=deepspeed", "engine.stage=3"]], ids=["native", "deepspeed"])
def test_srun_alone_joins_its_tasks_to_one_run(cluster: SlurmCluster, tmp_path: Path, engine: list[str]) -> None:
    if engine:
        if find_spec("deepspeed") is None:
            pytest.skip("deepspeed is not installed")
        engine = [*engine, "network.dtype=float32", "train.precision=float32"]
    train = [sys.executable, "-m", "distsam", "train", *short_run(tmp_path / "run"), *engine]
    done = cluster.run(["srun", "-N2", "-n2", *train], REPOSITORY, JOB_S, environment())
    assert done.returncode == 0, done.stderr
    summary = summary_of(tmp_path / "run")
    assert (summary["world_size"], summary["steps"]) == (2, 4)
    assert done.stdout.count("held-out R2") == 1, "only rank 0 prints"


def test_the_batch_script_trains_on_both_nodes(cluster: SlurmCluster, tmp_path: Path) -> None:
    log = tmp_path / "job.out"
    script = [f"--output={log}", "slurm/train.sbatch", *short_run(tmp_path / "run")]
    job = cluster.submit(script, REPOSITORY, JOB_S, environment())
    assert (job["JobState"], job["ExitCode"]) == ("COMPLETED", "0:0"), log.read_text()
    summary = summary_of(tmp_path / "run")
    assert (summary["world_size"], summary["steps"]) == (2, 4)


def test_a_batch_job_that_cannot_be_ends_with_2_and_one_line_of_ours(cluster: SlurmCluster, tmp_path: Path) -> None:
    log = tmp_path / "job.out"
    script = [f"--output={log}", "slurm/train.sbatch", *short_run(tmp_path / "run"), "sharding.replicas=3"]
    job = cluster.submit(script, REPOSITORY, JOB_S, environment())
    assert (job["JobState"], job["ExitCode"]) == ("FAILED", "2:0"), log.read_text()
    ours = [line for line in log.read_text().splitlines() if not line.startswith("srun:")]
    assert ours == ["distsam: sharding.replicas: 3: it must divide the world size, which is 2"]
    assert not (tmp_path / "run").exists()
