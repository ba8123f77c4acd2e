"""What of a config must be the same on every rank, and how a difference is said."""

import json
from pathlib import Path

import pytest

import distsam
from distsam.tensornet.cost import COSTS_FILE, NANOSECONDS
from distsam.tensornet.kernels import KERNELS
from distsam.train.config_file import load_config
from distsam.train.run import run_training
from distsam.train.same_config import MAY_DIFFER, check_same_config, described, difference

OWN = """
run: {dir: runs/own}
task:
  target: mine:make
  arguments: {token: "${oc.env:STORE_TOKEN}", words: [a, b]}
train: {steps: 2}
"""


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STORE_TOKEN", "hunter2")
    file = tmp_path / "own.yaml"
    file.write_text(OWN)
    return file


def test_a_process_alone_has_the_same_config(path: Path) -> None:
    check_same_config(load_config(path))


def test_each_machine_may_have_a_token_of_its_own(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = described(load_config(path))
    monkeypatch.setenv("STORE_TOKEN", "swordfish")
    assert described(load_config(path)) == first
    assert "hunter2" not in str(first)


def test_a_secret_is_not_shown_where_another_rank_has_it_plainly(path: Path) -> None:
    first, other = described(load_config(path)), described(load_config(path, ["task.arguments.token=hunter2"]))
    for problem in (difference(first, other, 3), difference(other, first, 3)):
        assert "task.arguments.token is " in problem
        assert "'${oc.env:STORE_TOKEN}'" in problem
        assert "not shown" in problem
        assert "hunter2" not in problem


def test_values_are_said_of_both_ranks(path: Path) -> None:
    first = described(load_config(path))
    other = described(load_config(path, ["task.arguments={words: [a, b], width: 3}", "train.steps=4"]))
    assert difference(first, other, 5) == (
        "rank 5 differs from rank 0: task.arguments.token is absent there and '${oc.env:STORE_TOKEN}' on rank 0; "
        "train.steps is 4 there and 2 on rank 0; task.arguments.width is 3 there and absent on rank 0; start every "
        "rank with the same config, overrides and installation"
    )


def test_of_many_differences_the_first_are_said_and_the_others_counted(path: Path) -> None:
    keys = [
        "optim.lr=0.5",
        "optim.schedule=linear",
        "train.steps=7",
        "train.log_every=3",
        "run.seed=8",
        f"run.dir={'x' * 99}",
    ]
    problem = difference(described(load_config(path)), described(load_config(path, keys)), 1)
    assert problem.count(" on rank 0") == 4
    assert "; and 2 more; start" in problem
    assert f"run.dir is '{'x' * 59}... there" in problem


def test_only_what_names_a_place_on_a_machine_or_its_threads_may_differ(tmp_path: Path) -> None:
    file = tmp_path / "file.yaml"
    file.write_text("{data: {source: file, path: a.npy}, network: {format: cp, bond_dim: 2}, train: {steps: 2}}")
    first = described(load_config(file))
    assert described(load_config(file, ["data.path=b.npy", "train.num_threads=3"])) == first
    assert described(load_config(file, ["run.dir=elsewhere"])) != first
    assert {"data.path", "data.tokenizer", "model.path", "train.num_threads"} == MAY_DIFFER


def test_ranks_with_other_costs_or_kernels_are_told_apart(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans follow from them; of cut cores, which collectives there are."""
    config = load_config(path)
    before = described(config)
    costs = path.with_name("costs.json")
    costs.write_text(json.dumps({"nanoseconds": {**NANOSECONDS._asdict(), "calls": 1.0}}))
    monkeypatch.setenv(COSTS_FILE, str(costs))
    assert "DISTSAM_COSTS is " in difference(before, described(config), 1)
    monkeypatch.delenv(COSTS_FILE)
    monkeypatch.setenv(KERNELS, "numba")
    assert "DISTSAM_KERNELS is " in difference(before, described(config), 1)


@pytest.mark.parametrize("name", [COSTS_FILE, KERNELS])
def test_a_variable_that_cannot_be_used_is_said_before_anything_is_written(
    path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    config = load_config(path, [f"run.dir={path.parent / 'run'}"])
    monkeypatch.setenv(name, "/none")
    with pytest.raises(distsam.InputError, match=name):
        run_training(config)
    assert not (path.parent / "run").exists()
