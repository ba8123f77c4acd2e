"""`distsam init`: configs that the package brings along, as they are, never over one that is there."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from distsam.cli import app
from distsam.commands.init import CONFIGS
from distsam.train.config_file import load_config

SHIPPED = Path(__file__).parents[3] / "configs"
NAMES = sorted(path.stem for path in SHIPPED.glob("*.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_every_config_can_be_written_and_is_one(tmp_path: Path, name: str) -> None:
    done = CliRunner().invoke(app, ["init", name, "-o", str(tmp_path / "mine.yaml")])
    assert done.exit_code == 0, done.stderr
    assert (tmp_path / "mine.yaml").read_text() == (SHIPPED / f"{name}.yaml").read_text()
    assert load_config(tmp_path / "mine.yaml").train.steps > 0
    assert (tmp_path / "mine.yaml").read_text().startswith("# ")


def test_the_package_has_them() -> None:
    assert sorted(path.stem for path in CONFIGS.glob("*.yaml")) == NAMES


def test_what_is_there_is_never_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(app, ["init"]).exit_code == 0
    (tmp_path / "file.yaml").write_text("mine")
    done = CliRunner().invoke(app, ["init"])
    assert (done.exit_code, done.stderr) == (2, "distsam: --output: file.yaml exists; choose another name\n")
    assert (tmp_path / "file.yaml").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["quik"], "init: 'quik' is no config; choose one of covid_base"),
        (["-o", "no/c.yaml"], "no/c.yaml cannot be written"),
    ],
)
def test_what_cannot_be_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["init", *arguments])
    assert done.exit_code == 2
    [line] = done.stderr.splitlines()
    assert says in line
    assert not list(tmp_path.iterdir())
