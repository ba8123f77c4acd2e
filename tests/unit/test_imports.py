"""The house's import rules, read from the syntax trees."""

import ast
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

import distsam
from distsam.train.config import section_forms
from distsam.train.config_errors import all_keys

PACKAGE = Path(distsam.__file__).parent
ROOMS_BELOW = {
    "__main__": {"cli"},
    "cli": {"commands"},
    "launch": set(),
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
    "errors": set(),
    "environment": set(),
}
ONE_IMPORTER = (
    "deepspeed",
    "wandb",
    "transformers",
    "wandb_workspaces",
    "tensorboard",
    "xarray",
    "h5py",
    "matplotlib",
    "opt_einsum",
    "omegaconf",
    "yaml",
    "optuna",
    "torchmetrics",
    "jinja2",
)
BELOW_TRAIN = (
    "tensornet",
    "sharding",
    "balance",
    "optim",
    "engine",
    "tasks",
    "runs",
    "report",
    "errors",
    "environment",
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


def module_of(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(file) for file in FILES}


def runs_at_import(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that importing a file runs: not those of its functions, nor those for type checkers alone."""
    for node in body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield from runs_at_import(node.orelse)
            continue
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for block in ("body", "orelse", "finalbody"):
                yield from runs_at_import(getattr(node, block, []))
            for handler in getattr(node, "handlers", []):
                yield from runs_at_import(handler.body)


def modules_needed_by(file: Path) -> set[str]:
    """Our modules that must be there before the file is imported."""
    needed = set()
    for node in runs_at_import(ast.parse(file.read_text()).body):
        if isinstance(node, ast.Import):
            needed |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            # `from package import module` needs the module, `from module import name` that module.
            needed |= (inner & MODULES) | ({node.module or ""} if inner - MODULES else set())
    return needed & MODULES


def cycle_in(needs: dict[str, set[str]]) -> list[str]:
    """Modules that need each other in turn, the first one again at the end; [] where there are none."""
    done: set[str] = set()

    def search(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        for below in sorted(needs[module]):
            if found := search(below, [*path, module]):
                return found
        done.add(module)
        return []

    return next((found for module in sorted(needs) if (found := search(module, []))), [])


def texts_of(file: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of every string and comment."""
    with file.open("rb") as stream:
        for token in tokenize.tokenize(stream.readline):
            if token.type == tokenize.COMMENT or tokenize.tok_name[token.type] in ("STRING", "FSTRING_MIDDLE"):
                yield token.start[0], token.string


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_one_way(file: Path) -> None:
    room = room_of(file)
    allowed = ROOMS_BELOW.get(room, set()) | {room, "errors", "environment"}
    for name in imports_of(file):
        parts = name.split(".")
        if parts[0] == "distsam" and len(parts) > 1 and parts[1] != "__version__":
            assert parts[1] in allowed, f"{room} imports {name}"


def test_no_module_needs_itself_in_a_circle() -> None:
    """Inside a room neither: a file of a circle can be read, and tested, only with all the others."""
    assert cycle_in({module_of(file): modules_needed_by(file) for file in FILES}) == []


def test_a_circle_of_imports_would_be_found() -> None:
    assert cycle_in({"a": {"b"}, "b": {"c", "d"}, "c": set(), "d": {"b"}}) == ["b", "d", "b"]
    assert cycle_in({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_no_file_below_train_names_a_key_of_the_config() -> None:
    keys = {key for task in ({}, {"target": "a:b"}) for key in all_keys(section_forms({"task": task}))}
    assert keys > {"optim.rho", "data.path", "network.format", "task.target", "wandb.mode"}
    named = re.compile(rf"(?<![\w.])({'|'.join(map(re.escape, sorted(keys)))})(?![\w])")
    found = [
        f"{file.relative_to(PACKAGE)}:{line}: {match[0]}"
        for file in FILES
        if room_of(file) in BELOW_TRAIN
        for line, text in texts_of(file)
        for match in named.finditer(text)
    ]
    assert not found


@pytest.mark.parametrize("library", ONE_IMPORTER)
def test_a_library_has_at_most_one_importer(library: str) -> None:
    assert len(importers(library)) <= 1, importers(library)


def test_tensorly_has_two_importers() -> None:
    names = {str(file.relative_to(PACKAGE)) for file in importers("tensorly")}
    assert names == {"tensornet/decompose.py", "tasks/sources.py"}


def test_rich_has_two_importers() -> None:
    """The bar of the run that trains and the view of those who watch it: neither room may know the other."""
    names = {str(file.relative_to(PACKAGE)) for file in importers("rich")}
    assert names == {"train/progress.py", "report/live_table.py"}


def test_scipy_has_two_importers() -> None:
    """Its statistics judge runs, its reader of MATLAB files gives them data."""
    names = {str(file.relative_to(PACKAGE)) for file in importers("scipy")}
    assert names == {"report/statistics.py", "tasks/matlab.py"}


def test_pydantic_stays_in_train() -> None:
    assert {room_of(file) for file in importers("pydantic")} == {"train"}


def test_only_the_table_of_parts_knows_the_parts() -> None:
    for file in FILES:
        names = {name.split(".")[2] for name in imports_of(file) if name.startswith("distsam.train.")}
        if any(name.endswith("_parts") for name in names):
            assert file == PACKAGE / "train" / "parts.py"


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
    assert {room_of(file) for file in FILES} == {*ROOMS_BELOW, "__init__"}
