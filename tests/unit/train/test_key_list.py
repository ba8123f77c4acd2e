"""The list of keys: every one that a config may hold, with what the checks know of it."""

import pytest
from typer.testing import CliRunner

from distsam.cli import app
from distsam.train.config import section_forms
from distsam.train.config_errors import all_keys
from distsam.train.key_list import key_lines, section_names


def test_every_key_is_there_once_with_a_meaning() -> None:
    lines = list(key_lines())
    names = [line.split(" ")[0] for line in lines]
    assert len(set(names)) == len(names)
    assert set(names) == set(all_keys({**section_forms({"task": {"target": "a:b"}}), **section_forms({})}))
    assert all(line.partition("): ")[2] for line in lines)


@pytest.mark.parametrize(
    "line",
    [
        "optim.rho (default 0.05): Radius of the perturbation; auto: from the norm of the start. [sam]",
        "data.observed (default 0.8): Share of the entries that is not held out.",
        "network.bond_dim (required): Size of the bond; auto: by a rule, from the data. or: One size for all "
        "bonds, or one a bond; auto: by a rule, from the data. [cp, tt, tr]",
        "sharding.replicas (default 1): Copies of the sharded model; must divide the ranks. [fsdp]",
    ],
)
def test_a_line_says_default_meaning_and_parts(line: str) -> None:
    assert line in list(key_lines())


def test_one_section_and_none_of_that_name() -> None:
    done = CliRunner().invoke(app, ["keys", "engine"])
    assert [line.split(" ")[0] for line in done.stdout.splitlines()] == ["engine.kind", "engine.stage", "engine.config"]
    done = CliRunner().invoke(app, ["keys", "egine"])
    assert done.exit_code == 2
    assert done.stderr == f"distsam: keys: there is no section 'egine'; there are {', '.join(section_names())}\n"


def test_the_keys_of_another_task_and_of_none() -> None:
    done = CliRunner().invoke(app, ["keys", "model", "--task", "classification"])
    assert done.exit_code == 0
    assert "model.adapters (default null)" in done.stdout
    done = CliRunner().invoke(app, ["keys", "--task", "nonsense"])
    assert done.exit_code == 2
    assert done.stderr.startswith("distsam: --task: 'nonsense' is no task.kind; there are completion, classification")
