"""Whole runs under DeepSpeed: the scores of native ones, resumed on other ranks and engines, read without DeepSpeed."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import (
    LIMIT_S,
    ROOT,
    alone,
    assert_same_weights,
    environment,
    invoke,
    on_two_ranks,
    run,
    small_config,
    torchrun,
)

from distsam.train.saved_run import open_run

pytest.importorskip("deepspeed")
SINGLE = ["network.dtype=float32", "train.precision=float32"]
ENGINE = ["engine.kind=deepspeed", "engine.stage=2", *SINGLE]


def train(folder: Path, name: str, *overrides: str, num_ranks: int = 2) -> Path:
    command = on_two_ranks if num_ranks == 2 else alone
    done = run(command("train", small_config(folder), f"run.dir={folder}/{name}", "train.resume=auto", *overrides))
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return folder / name


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("native"), "native", *SINGLE)


@pytest.mark.parametrize("stage", [*(pytest.param(stage, marks=pytest.mark.soak) for stage in (0, 2, 3)), 1])
def test_a_run_has_the_scores_of_a_native_one_and_is_resumed_anywhere(tmp_path: Path, native: Path, stage: int) -> None:
    here = [*ENGINE, f"engine.stage={stage}"]
    whole = train(tmp_path, "whole", *here)
    scores = [json.loads((folder / "summary.json").read_text()) for folder in (native, whole)]
    for key in ("heldout/r2", "validation/r2", "balance/network/norm_deviation"):
        assert scores[1][key] == pytest.approx(scores[0][key], rel=1e-3, abs=1e-5), key
    parts = train(tmp_path, "parts", *here, "train.steps=10")
    train(tmp_path, "parts", *here)
    assert_same_weights(whole, parts)
    if stage < 2:
        return
    # float32, ten steps of Adam after the change: rounding, in units of each tensor's largest entry.
    for name, others in {"alone": (here, 1), "natively": (SINGLE, 2)}.items():
        train(tmp_path, name, *here, "train.steps=10")
        train(tmp_path, name, *others[0], num_ranks=others[1])
        assert_same_weights(whole, tmp_path / name, tolerance=1e-3)


def test_evaluate_and_predict_need_no_deepspeed(tmp_path: Path) -> None:
    folder = train(tmp_path, "run", *ENGINE)
    summary = json.loads((folder / "summary.json").read_text())
    without = "import sys\nsys.modules['deepspeed'] = None\nfrom distsam.cli import main\nmain()\n"
    done = run([sys.executable, "-c", without, "evaluate", str(folder), "--json"])
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["heldout/r2"] == pytest.approx(summary["heldout/r2"], rel=1e-6)
    done = run([sys.executable, "-c", without, "predict", str(folder), "-o", str(tmp_path / "out.npz")])
    assert done.returncode == 0, done.stderr
    assert np.isfinite(np.load(tmp_path / "out.npz")["tensor"]).all()
    done = run([sys.executable, "-c", without, "export", str(folder), "-o", str(tmp_path / "out.pt")])
    assert done.returncode == 0, done.stderr
    sizes = {name: tuple(w.shape) for name, w in torch.load(tmp_path / "out.pt", weights_only=True).items()}
    assert sizes == {name: tuple(w.shape) for name, w in open_run(folder).model.state_dict().items()}
    done = run([sys.executable, "-c", without, "train", str(small_config(tmp_path)), f"run.dir={tmp_path}/no", *ENGINE])
    assert done.returncode == 2
    assert done.stderr.startswith("distsam: engine.kind: deepspeed is not installed")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["engine.stage=4"], "engine.stage: 4 is not valid; must be one of 0, 1, 2, 3"),
        (["train.precision=float64", "network.dtype=null"], "train.precision: float64 is not trained by engine.kind="),
        (["engine.config=none.json"], "engine.config: none.json: no such file here, in "),
        (["engine.config={zero_optimization: {stage: 1}}"], "engine.config: zero_optimization.stage is 1 there, and"),
        (["engine.config={zero_optimization: {stage3: 1}}"], "engine.config: DeepSpeed does not take it: stage3: "),
        (["engine.config={zero_optimization: {zero_hpz_partition_size: 2}}"], "engine.config: zero_optimization.zero_"),
        (["engine.config={fp16: {enabled: true}}"], "engine.config: fp16.enabled is True there: SAM's radius"),
        (
            ["engine.config={gradient_clipping: 2.0}"],
            "engine.config: gradient_clipping is 2.0 there, and optim.clip_norm is null here; set optim.clip_norm",
        ),
        (["engine.config={zero_optimizaton: {stage: 2}}"], "engine.config: zero_optimizaton is no key of DeepSpeed's"),
        (["engine.config={zero_optimization: 2}"], "engine.config: zero_optimization is 2 there; it must be a mapping"),
        (["engine.config={train_batch_size:32}"], "engine.config: train_batch_size:32 needs a space after its colon"),
        (["engine.config={bf16: {enabled: true}}"], "engine.config: bf16.enabled is True there: weights stay in"),
        (["engine.config={zero_optimization: {cpu_offload: true}}"], "engine.config: zero_optimization.cpu_offload"),
        (["engine.kind=native"], "engine.stage: 2 is not used by engine.kind=native; it is for deepspeed"),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path: Path, overrides: list[str], says: str) -> None:
    result = invoke("train", small_config(tmp_path), f"run.dir={tmp_path}/run", *ENGINE, *overrides)
    assert result.exit_code == 2
    [line] = result.stderr.splitlines()
    assert line.startswith(f"distsam: {says}")
    assert not (tmp_path / "run").exists()


def test_what_the_launcher_adds_to_the_command_line_is_taken() -> None:
    done = invoke("--local_rank=1", "train", "none.yaml")
    assert (done.exit_code, done.stderr.splitlines()) == (2, ["distsam: none.yaml: no such config file"])


@pytest.mark.soak
def test_one_process_may_hold_several_runs(tmp_path: Path) -> None:
    """DeepSpeed keeps process groups, which the end of a run closes."""
    engines = [["engine.kind=native"], *(["engine.kind=deepspeed", f"engine.stage={stage}"] for stage in (3, 1))]
    script = (
        "from distsam.train import load_config, run_training\n"
        f"for number, engine in enumerate({engines * 2!r}):\n"
        f"    keys = ['train.steps=2', f'run.dir={tmp_path}/{{number}}', *{SINGLE!r}, *engine]\n"
        f"    summary = run_training(load_config({str(small_config(tmp_path))!r}, keys))\n"
        "    print('rmse', summary.numbers['train/rmse'])\n"
    )
    for launcher in ([sys.executable], [*torchrun(), "--no-python", sys.executable]):
        done = run([*launcher, "-c", script])
        assert done.returncode == 0, done.stderr
        scores = [float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("rmse")]
        assert len(scores) in (6, 12)
        assert scores == pytest.approx([scores[0]] * len(scores), rel=1e-5)
        for number in range(6):
            shutil.rmtree(tmp_path / str(number))


def test_sigterm_to_the_launcher_of_deepspeed_ends_the_run_with_a_checkpoint(tmp_path: Path) -> None:
    launch = [str(ROOT / "launch" / "deepspeed.sh"), str(small_config(tmp_path)), f"run.dir={tmp_path}/run", *ENGINE]
    env = environment(PYTHON=sys.executable, NPROC="2")
    with subprocess.Popen([*launch, "train.steps=100000", "train.checkpoint_every=null"], env=env) as process:
        wait_for_rows(tmp_path / "run")
        process.terminate()
        process.wait(LIMIT_S)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["stopped_by"] == "SIGTERM"
    assert 0 < summary["steps"] < 100000
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 1


def wait_for_rows(run_dir: Path) -> None:
    end_s = time.monotonic() + LIMIT_S
    while not (run_dir / "metrics.jsonl").exists() or not (run_dir / "metrics.jsonl").read_text():
        assert time.monotonic() < end_s
        time.sleep(0.1)


def test_the_launcher_of_deepspeed_starts_a_run_and_passes_on_its_mistakes(tmp_path: Path) -> None:
    launch = [str(ROOT / "launch" / "deepspeed.sh"), str(small_config(tmp_path)), f"run.dir={tmp_path}/run", *ENGINE]

    def launched(*more: str) -> subprocess.CompletedProcess[str]:
        env = environment(PYTHON=sys.executable, NPROC="2")
        return subprocess.run([*launch, *more], env=env, capture_output=True, text=True, timeout=LIMIT_S, check=False)

    done = launched("engine.stage=9")
    assert done.returncode == 2
    assert "distsam: engine.stage: 9 is not valid" in done.stderr
    done = launched()
    assert done.returncode == 0, done.stderr
    assert "plan zero2 on 2 ranks" in done.stdout
    assert (tmp_path / "run" / "summary.json").exists()
