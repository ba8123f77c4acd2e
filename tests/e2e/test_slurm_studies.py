"""`distsam compare --slurm`: a job array on a real Slurm shares the runs of a comparison."""

import json
import os
import sys
import time
from pathlib import Path

import pytest
from command_line import ROOT, invoke, small_config
from slurm_cluster import SlurmCluster, what_is_missing

# Two tasks load torch and do eight runs of 20 steps; on an idle machine in a tenth of this.
ARRAY_S = 180.0

pytestmark = pytest.mark.skipif(what_is_missing() is not None, reason=str(what_is_missing()))


def test_the_tasks_of_an_array_share_the_runs_of_a_comparison(tmp_path: Path) -> None:
    few = ["--arms", "base,sam", "--seeds", "2", "--trials", "2", "--tuning-seeds", "1", "--slurm", "2"]
    command = [sys.executable, "-m", "distsam", "compare", str(small_config(tmp_path)), *few, "-o", f"{tmp_path}/cmp"]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    with SlurmCluster() as cluster:
        done = cluster.run(
            command, ROOT, 60.0, {"OMP_NUM_THREADS": "1", "PYTHONPATH": path, "PATH": os.environ["PATH"]}
        )
        assert done.returncode == 0, done.stderr
        assert "Submitted batch job" in done.stdout
        reports = _reports(tmp_path / "cmp", expected=8)
    # Every run was done once; by both tasks, unless one of them was still starting.
    assert sorted(int(line.partition("[")[2].partition("/")[0]) for line in reports)[-1] == 8
    assert len({line.partition("] ")[2].partition(":")[0] for line in reports}) == 8
    shown = invoke("work", tmp_path / "cmp")
    assert shown.exit_code == 0, shown.output
    assert not [line for line in shown.output.splitlines() if line.startswith("[")]  # nothing was left
    assert json.loads((tmp_path / "cmp" / "compare.json").read_text())["verdict"] in shown.output


def _reports(folder: Path, expected: int) -> list[str]:
    """The lines that the tasks have printed, one a run."""
    deadline = time.monotonic() + ARRAY_S
    while time.monotonic() < deadline:
        text = "".join(path.read_text() for path in folder.glob("slurm-*.out"))
        lines = [line for line in text.splitlines() if line.startswith("[")]
        if len(lines) >= expected:
            return lines
        time.sleep(0.5)
    raise AssertionError(f"only {len(lines)} runs in {ARRAY_S} s: {text}")
