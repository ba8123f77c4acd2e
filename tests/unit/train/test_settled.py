"""Keys that say auto become numbers, once, and stay those."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distsam.errors import InputError
from distsam.runs.folder import RunFolder
from distsam.sharding import Layout
from distsam.tasks.auto import batch_for
from distsam.train.build import build_task
from distsam.train.config import Config, validate
from distsam.train.config_file import load_config, to_yaml
from distsam.train.settled import auto_keys, describe_values, recalled, settled


@pytest.fixture(autouse=True)
def _short_pilot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distsam.tasks.pilot.STEPS", 5)  # what it finds is not looked at here


def config_of(folder: Path, **sections: Any) -> Config:
    """Everything left to the data: a tensor of rank 1 with a little noise."""
    rng = np.random.default_rng(0)
    tensor = np.einsum("i,j,k->ijk", *(rng.normal(size=size) for size in (9, 8, 7)))
    np.save(folder / "mine.npy", tensor + 0.01 * rng.normal(size=tensor.shape))
    raw = {
        "run": {"dir": str(folder / "run")},
        "data": {"source": "file", "path": str(folder / "mine.npy")},
        "network": {"format": "cp", "bond_dim": "auto"},
        "optim": {"base": "adam", "lr": "auto", "weight_decay": "auto"},
        "train": {"steps": 5, "log_every": 5},
    }
    return validate({**raw, **{name: {**raw.get(name, {}), **keys} for name, keys in sections.items()}})


def test_every_auto_becomes_a_number_that_the_first_line_names(tmp_path: Path) -> None:
    asked = config_of(tmp_path)
    config = settled(asked, build_task(asked, Layout.alone()))
    assert auto_keys(asked) == ["network.bond_dim", "optim.lr", "optim.weight_decay"]
    assert auto_keys(config) == []
    decay = config.optim.weight_decay
    assert isinstance(decay, float)
    assert 0 < decay < 0.1
    # 363 training entries for 24 parameters a bond: two parameters an entry
    expected = f"auto: network.bond_dim=30, optim.lr=0.03, optim.weight_decay={decay}"
    assert describe_values(asked, config) == expected


def test_numbers_that_are_given_stay(tmp_path: Path) -> None:
    asked = config_of(tmp_path, network={"bond_dim": 2}, optim={"lr": 0.5})
    config = settled(asked, build_task(asked, Layout.alone()))
    assert (config.part_keys("network", type(config.network)).bond_dim, config.optim.lr) == (2, 0.5)
    assert describe_values(asked, config) == f"auto: optim.weight_decay={config.optim.weight_decay}"


def test_the_numbers_are_the_same_for_the_same_data(tmp_path: Path) -> None:
    asked = config_of(tmp_path)
    first, second = (settled(asked, build_task(asked, Layout.alone())) for _ in range(2))
    assert first.model_dump() == second.model_dump()


def test_the_written_config_holds_numbers_and_a_resume_takes_them(tmp_path: Path) -> None:
    # Those of the folder, also where the rule of today would give others.
    asked = config_of(tmp_path, train={"resume": "auto"})
    kept = config_of(tmp_path, network={"bond_dim": 3}, optim={"lr": 0.25, "weight_decay": 0.125})
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.write_config(to_yaml(kept))
    config = recalled(asked, folder)
    assert auto_keys(config) == []
    assert (config.optim.lr, config.optim.weight_decay) == (0.25, 0.125)
    assert load_config(folder.config).optim.model_dump() == config.optim.model_dump()
    # Without resume=auto the folder says nothing: the run will be refused, or begin anew.
    fresh = config_of(tmp_path)
    assert recalled(fresh, folder) is fresh


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"optim": {"base": "adamw"}}, "optim.weight_decay: auto is known for optim.base=adam and sgd, not for adamw"),
        ({"optim": {"base": "sgd"}}, "optim.lr: auto is known for optim.base=adam and adamw, not for sgd"),
        ({"data": {"standardise": False}}, "optim.lr: auto is known for data.standardise=true alone"),
        ({"optim": {"lr": "automatic"}}, "optim.lr: 'automatic' is not valid; must be a number or auto"),
        (
            {"network": {"bond_dim": "big"}},
            "network.bond_dim: 'big' is not valid; must be a whole number or auto",
        ),
    ],
)
def test_an_auto_that_no_rule_knows_is_refused(sections: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        config_of(tmp_path, **sections)
    assert str(refused.value).startswith(message)


def test_a_task_of_ones_own_has_no_auto() -> None:
    raw = {"task": {"target": "mine:Task"}, "optim": {"lr": "auto"}, "train": {"steps": 1}}
    with pytest.raises(InputError, match=r"optim.lr: auto is not known for task.kind=target"):
        validate(raw)


def test_a_step_takes_all_entries_unless_they_are_many(tmp_path: Path) -> None:
    asked = config_of(tmp_path, train={"batch_size": "auto"})
    config = settled(asked, build_task(asked, Layout.alone()))
    assert config.part_keys("train", type(config.train)).batch_size is None
    assert (batch_for(50_000), batch_for(50_001)) == (None, 8192)
