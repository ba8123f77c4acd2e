"""The house's import rules, read from the syntax trees."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import distsam

PACKAGE = Path(distsam.__file__).parent
ROOMS_BELOW = {
    "cli": {"commands"},
    "commands": {"train", "report", "runs"},
    "train": {"tensornet", "sharding", "balance", "optim", "engine", "tasks", "runs"},
    "tasks": {"tensornet"},
    "engine": {"optim", "balance", "sharding", "tensornet"},
    "optim": {"balance", "sharding", "tensornet"},
    "balance": {"sharding", "tensornet"},
    "sharding": {"tensornet"},
    "tensornet": set(),
    "report": {"runs"},
    "runs": set(),
}
ONE_IMPORTER = (
    "deepspeed",
    "wandb",
    "matplotlib",
    "opt_einsum",
    "pydantic",
    "omegaconf",
    "rich",
)
FORBIDDEN_NAMES = {"utils", "helpers", "common", "misc", "types", "core"}
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(file: Path) -> Iterator[str]:
    """Dotted names of every module that the file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def importers(library: str) -> set[Path]:
    return {file for file in FILES if any(name.split(".")[0] == library for name in imports_of(file))}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_one_way(file: Path) -> None:
    room = room_of(file)
    if room not in ROOMS_BELOW:
        return  # the package's own __init__, __main__ and errors
    allowed = ROOMS_BELOW[room] | {room, "errors", "environment"}
    for name in imports_of(file):
        parts = name.split(".")
        if parts[0] == "distsam" and len(parts) > 1 and parts[1] != "__version__":
            assert parts[1] in allowed, f"{room} imports {name}"


@pytest.mark.parametrize("library", ONE_IMPORTER)
def test_a_library_has_at_most_one_importer(library: str) -> None:
    assert len(importers(library)) <= 1, importers(library)


def test_tensorly_has_two_importers() -> None:
    names = {str(file.relative_to(PACKAGE)) for file in importers("tensorly")}
    assert names == {"tensornet/decompose.py", "tasks/sources.py"}


def test_tensornet_and_tasks_do_not_know_torch_distributed() -> None:
    for file in FILES:
        if room_of(file) in ("tensornet", "tasks"):
            assert not any(name.startswith("torch.distributed") for name in imports_of(file)), file


def test_report_runs_and_commands_do_not_know_torch() -> None:
    assert not any(room_of(file) in ("report", "runs", "commands") for file in importers("torch"))


def test_runs_knows_the_standard_library_only() -> None:
    for file in FILES:
        if room_of(file) == "runs":
            tops = {name.split(".")[0] for name in imports_of(file)}
            assert tops <= {"distsam", *sys.stdlib_module_names}, file


def test_only_the_commands_know_how_to_parse_a_command_line() -> None:
    assert {room_of(file) for file in importers("typer")} == {"cli", "commands"}


def test_only_train_and_commands_know_the_config() -> None:
    for file in FILES:
        if room_of(file) not in ("train", "commands"):
            assert not any(name.startswith("distsam.train") for name in imports_of(file)), file


def test_no_file_or_folder_has_a_name_that_says_nothing() -> None:
    names = {part.removesuffix(".py") for file in FILES for part in file.relative_to(PACKAGE).parts}
    assert not names & FORBIDDEN_NAMES


def test_every_room_of_the_house_is_there() -> None:
    assert {room_of(file) for file in FILES} >= set(ROOMS_BELOW)
