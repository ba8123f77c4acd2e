"""With a routed mode a rank gets the entries of its own rows, from whatever source."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distsam.errors import InputError
from distsam.sharding import Layout
from distsam.tasks.task import TaskContext
from distsam.train import parts
from distsam.train.build import build_task
from distsam.train.completion_auto import settle
from distsam.train.config import Config, validate

SHAPE = (9, 8, 7)


def config_of(data: dict[str, Any], **sections: Any) -> Config:
    raw = {
        "data": data,
        "network": {"format": "cp", "bond_dim": "auto"},
        "optim": {"base": "adam"},
        "train": {"steps": 3, "batch_size": 20, "precision": "float64"},
    }
    return validate({**raw, **sections})


def sources(folder: Path) -> dict[str, dict[str, Any]]:
    tensor = np.random.default_rng(0).standard_normal(SHAPE)
    np.savez(
        folder / "some.npz", indices=np.argwhere(tensor > -1), values=tensor[tensor > -1], shape=np.array(tensor.shape)
    )
    np.save(folder / "dense.npy", np.where(tensor > -1, tensor, np.nan))
    lines = [f"{'abcdefghi'[i]},{j},{k},{tensor[i, j, k]}" for i, j, k in np.argwhere(tensor > -1).tolist()]
    (folder / "table.csv").write_text("\n".join(["one,two,three,value", *lines]))
    sizes = {"i": 9, "j": 8, "k": 7, "r": 2}
    return {
        "coordinates": {"source": "file", "path": str(folder / "some.npz")},
        "dense": {"source": "file", "path": str(folder / "dense.npy"), "split": "fibres", "fibre_mode": 0},
        "lowrank": {"source": "lowrank", "equation": "ir,jr,kr->ijk", "sizes": sizes, "noise": 0.1},
        "table": {"source": "table", "path": str(folder / "table.csv")},
        "installed": {"source": "kinetic"},
    }


def task_of(config: Config, rank: int, mode: int = 1) -> Any:
    context = TaskContext(data_rank=rank, data_size=2, routed_mode=mode, dtype=torch.float64)
    part = parts.TASKS.chosen(config.task)
    with part.naming():
        return part.build(config, context)


@pytest.mark.parametrize("name", ["coordinates", "dense", "lowrank", "table", "installed"])
def test_ranks_have_the_entries_of_one_process_between_them_from_every_source(tmp_path: Path, name: str) -> None:
    if name == "table":
        pytest.importorskip("pyarrow")
    config = config_of(sources(tmp_path)[name])
    whole: Any = build_task(config, Layout.alone())
    ranks = [task_of(config, rank) for rank in range(2)]
    assert sum(len(task.entries) for task in ranks) == len(whole.entries)
    for rank, task in enumerate(ranks):
        assert task.identity() == whole.identity()
        assert task.describe() == whole.describe()
        assert task.labels() == whole.labels()
        rows = task.entries.indices[:, 1]
        assert ((task.row_bounds[rank] <= rows) & (rows < task.row_bounds[rank + 1])).all()
    met = torch.cat([task.microbatches(0, 1)[0].indices for task in ranks]).tolist()
    assert sorted(met) == sorted(whole.microbatches(0, 1)[0].indices.tolist())


def test_numbers_in_place_of_auto_are_those_of_all_entries(tmp_path: Path) -> None:
    train = {"steps": 3, "batch_size": "auto"}
    config = config_of(sources(tmp_path)["coordinates"], optim={"base": "adam", "lr": "auto"}, train=train)
    expected = settle(parts.FORMATS, config, build_task(config, Layout.alone()))
    assert settle(parts.FORMATS, config, task_of(config, 1)) == expected


@pytest.mark.parametrize(
    ("sections", "mode", "said"),
    [
        ({"network": {"format": "cp", "bond_dim": 2, "init": "data"}}, 1, r"^network.init: is 'data', which needs all"),
        ({}, 3, r"^sharding.mode: is 3; the tensor has 3 modes"),
    ],
)
def test_what_a_routed_mode_cannot_have_is_refused_by_its_key(
    tmp_path: Path, sections: dict[str, Any], mode: int, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        task_of(config_of(sources(tmp_path)["coordinates"], **sections), 0, mode)


def test_a_weight_decay_by_the_rule_needs_all_entries(tmp_path: Path) -> None:
    config = config_of(sources(tmp_path)["coordinates"], optim={"base": "adam", "weight_decay": "auto"})
    with pytest.raises(InputError, match=r"^optim.weight_decay: auto needs all entries in one process"):
        settle(parts.FORMATS, config, task_of(config, 0))


def test_a_table_given_as_a_file_is_refused_as_without_a_routed_mode(tmp_path: Path) -> None:
    config = config_of({"source": "file", "path": str(tmp_path / "table.csv")})
    with pytest.raises(InputError, match=r"set data\.source=table"):
        task_of(config, 0)
