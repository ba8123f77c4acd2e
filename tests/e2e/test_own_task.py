"""A task of the user's own: trained, scored, named network by network; and what is said of one that cannot be used."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from command_line import LIMIT_S, ROOT, environment, torchrun

from distsam.report.curves import draw_curves
from distsam.runs.rows import read_rows

EXAMPLE = ROOT / "tests" / "unit" / "tasks" / "readme_task.py"
CONFIG = """
task: {target: "ratings:RatingTask", arguments: {shape: [12, 10, 8], batch_size: 256}}
optim: {method: sam, lr: 0.01}
train: {steps: 30, log_every: 10, num_threads: 1}
"""
THREE = """
import torch, distsam

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a = distsam.TensorNetwork(distsam.cp((4, 3), 2))
        self.b = distsam.TensorNetwork(distsam.tucker((4, 3), [2, 2]))
        self.c = distsam.TensorNetwork(distsam.einsum_network("xr,ry->xy", {"x": 4, "r": 2, "y": 3}))
        self.rest = torch.nn.Linear(1, 1)

    def forward(self):
        whole = self.a.dense() + self.b.dense() + self.c.dense()
        return self.rest(whole.unsqueeze(-1)).squeeze(-1)

class Task:
    goal = distsam.Goal("all/mse", higher_is_better=False, columns=("mse",))

    def __init__(self, context, fails=None):
        self.context, self.fails = context, fails
        if fails == "factory":
            raise RuntimeError("no such sensor")

    def build_model(self):
        torch.manual_seed(self.context.seed)
        return Model()

    def microbatches(self, step, count):
        if count > 2:
            raise distsam.InputError(f"accumulate: {count} pieces of a batch of 2")
        return [None] * count

    def loss(self, model, batch):
        if self.fails == "loss":
            raise KeyError("humidity")
        return (model() - 1).square().mean()

    def evaluate(self, model):
        return {"all/mse": (model() - 1).square().mean().item()}

def nothing(context):
    return object()
"""


def start(folder: Path, *overrides: str, ranks: int = 1) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable] if ranks == 1 else torchrun()
    command = [*launcher, "-m", "distsam", "train", "own.yaml", *overrides]
    return subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=LIMIT_S, check=False
    )


@pytest.fixture
def ratings(tmp_path: Path) -> Path:
    (tmp_path / "ratings.py").write_text(EXAMPLE.read_text())
    (tmp_path / "own.yaml").write_text(CONFIG)
    return tmp_path


@pytest.fixture
def three(tmp_path: Path) -> Path:
    (tmp_path / "three.py").write_text(THREE)
    (tmp_path / "own.yaml").write_text(
        "task: {target: 'three:Task'}\ntrain: {steps: 4, log_every: 2, num_threads: 1}\n"
    )
    return tmp_path


def test_the_example_trains_alike_on_one_rank_and_on_two(ratings: Path) -> None:
    scores = {}
    for name, ranks, plan in (("one", 1, "replicate"), ("two", 2, "replicate"), ("cut", 2, "fsdp")):
        done = start(ratings, f"run.dir={name}", f"sharding.plan={plan}", "train.precision=float64", ranks=ranks)
        assert done.returncode == 0, done.stderr
        summary = json.loads((ratings / name / "summary.json").read_text())
        scores[name] = summary["validation/r2"]
        assert set(summary["networks"]) == {"wide", "chain"}
        assert (ratings / name / "curves.png").is_file()
    # 30 steps of Adam in float64: rounding is divided by the root of second moments that are 1e-4 and more here.
    assert scores["two"] == pytest.approx(scores["one"], rel=1e-9)
    assert scores["cut"] == pytest.approx(scores["one"], rel=1e-9)


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")
@pytest.mark.soak
def test_a_task_of_the_users_own_trains_alike_under_deepspeed(ratings: Path, three: Path) -> None:
    """One whose model calls its networks, and one that asks them for their dense tensors."""
    three_config = CONFIG.replace("arguments: {shape: [12, 10, 8], batch_size: 256}", "arguments: {}")
    for target, key, config in (
        ("ratings:RatingTask", "validation/r2", CONFIG),
        ("three:Task", "all/mse", three_config.replace("ratings:RatingTask", "three:Task")),
    ):
        (ratings / "own.yaml").write_text(config)
        scores = []
        for name, engine in (("native", []), ("cut", ["engine.kind=deepspeed", "engine.stage=3"])):
            folder = ratings / f"{name} {target.partition(':')[0]}"
            done = start(ratings, f"run.dir={folder}", "train.precision=float32", *engine, ranks=2)
            assert done.returncode == 0, done.stderr
            scores.append(json.loads((folder / "summary.json").read_text())[key])
        # float32, 30 steps of Adam.
        assert scores[1] == pytest.approx(scores[0], rel=1e-3)


def test_every_network_has_its_own_core_names_in_summary_rows_and_curves(
    three: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert start(three, "run.dir=run").returncode == 0
    summary = json.loads((three / "run" / "summary.json").read_text())
    names = {name: network["core_names"] for name, network in summary["networks"].items()}
    assert names == {"a": ["factor_0", "factor_1"], "b": ["central", "factor_0", "factor_1"], "c": ["core_0", "core_1"]}
    assert [summary["networks"][name]["format"] for name in "abc"] == ["cp", "tucker", "einsum"]
    wanted = {f"balance/{network}/core_norm_sq/{core}" for network, cores in names.items() for core in cores}
    for row in read_rows(three / "run" / "metrics.jsonl"):
        assert {key for key in row if "/core_norm_sq/" in key} in (wanted, set())
    drawn: list[str] = []

    def note(axis: object, *_: object, label: str = "", **__: object) -> None:
        drawn.append(label)

    monkeypatch.setattr(
        "distsam.report.curves.draw_line", lambda axis, series, colour, label="", dash="-": note(axis, label=label)
    )
    draw_curves(three / "run")
    assert {f"{network}, {core}" for network, cores in names.items() for core in cores} <= set(drawn)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("task.target=nowhere:Task", "task.target: nowhere:Task: there is no module 'nowhere'"),
        ("task.target=three:Tusk", "task.target: three:Tusk: 'three' has no 'Tusk'; did you mean 'Task'?"),
        ("task.target=three", "task.target: is 'three'; it must be 'package.module:factory'"),
        ("task.target=three:nothing", "task.target: three:nothing made an object"),
        ("task.arguments={width: 3}", "task.arguments: "),
        ("train.accumulate=3", "accumulate: 3 pieces of a batch of 2"),
        ("data.source=il2", "data.source: 'il2' is not used by task.kind=target, but by completion"),
    ],
)
def test_a_task_that_cannot_be_used_is_one_line(three: Path, override: str, says: str) -> None:
    done = start(three, "run.dir=run", override)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith("distsam: ")
    assert says in line
    assert not (three / "run").exists()


@pytest.mark.parametrize(
    ("where", "what"), [("factory", "RuntimeError: no such sensor"), ("loss", "KeyError: 'humidity'")]
)
def test_what_the_users_code_raises_keeps_its_traceback_without_ours(three: Path, where: str, what: str) -> None:
    done = start(three, "run.dir=run", f"task.arguments={{fails: {where}}}")
    assert done.returncode == 2
    *traceback, line = done.stderr.splitlines()
    assert line.startswith("distsam: three:Task")
    assert what in line
    assert what in traceback[-1]
    assert f'File "{three}/three.py"' in done.stderr
    assert f'File "{ROOT}/distsam' not in done.stderr
    assert (three / "run").exists() == (where == "loss")


ONE_SIDED = """
import torch
from ratings import RatingTask

class OneSided(RatingTask):
    def __init__(self, context, **arguments):
        super().__init__(context, **arguments)
        self.is_first = context.data_rank == 0

    def build_model(self):
        if not self.is_first:
            raise OSError("no such sensor")
        return super().build_model()
"""


def test_a_rank_that_has_no_model_ends_all(tmp_path: Path) -> None:
    """The others waited for it in the broadcast of the weights."""
    (tmp_path / "ratings.py").write_text(EXAMPLE.read_text())
    (tmp_path / "onesided.py").write_text(ONE_SIDED)
    (tmp_path / "own.yaml").write_text(CONFIG.replace("ratings:RatingTask", "onesided:OneSided"))
    command = [*torchrun(), "-m", "distsam", "train", "own.yaml", f"run.dir={tmp_path}/run"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode != 0
    assert "distsam: rank 1: " in done.stderr
    assert "no such sensor" in done.stderr
    assert not (tmp_path / "run").exists()
