"""What the README shows is what is there, and runs."""

import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from command_line import ROOT, run

from distsam.train.config import section_forms
from distsam.train.config_errors import all_keys

README = (ROOT / "README.md").read_text()
EXAMPLE = (ROOT / "tests" / "unit" / "tasks" / "readme_task.py").read_text()


def section(title: str) -> str:
    text = README.partition(f"\n## {title}\n")[2]
    assert text, f"README.md has no section {title}"
    return text.partition("\n## ")[0]


def blocks(title: str, language: str) -> list[str]:
    """The code blocks of a section in a language; "" for what is printed."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", section(title), re.MULTILINE | re.DOTALL)
    return [text for word, text in found if word == language]


def test_the_task_that_is_shown_is_the_one_that_is_tested_and_short() -> None:
    assert blocks("Your own task", "python") == [EXAMPLE]
    assert EXAMPLE.count("\n") < 50


@pytest.mark.parametrize("position", [0, 1], ids=["alone", "on two ranks"])
def test_the_task_that_is_shown_prints_what_is_shown(position: int, tmp_path: Path) -> None:
    (tmp_path / "ratings.py").write_text(EXAMPLE)
    (tmp_path / "ratings.yaml").write_text(*blocks("Your own task", "yaml"))
    command = shlex.split(blocks("Your own task", "bash")[0].splitlines()[position])
    # Of the interpreter that runs the tests, whatever else is installed.
    command = [sys.executable, *(["-m", "distsam"] if command[0] == "distsam" else []), *command[1:]]
    done = run(["env", "-C", str(tmp_path), *command])
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    [printed] = blocks("Your own task", "")
    said = done.stdout.splitlines()
    for line in filter(None, printed.splitlines()):
        assert any(is_same_but_for_rounding(line, other) for other in said), (line, done.stdout)


def is_same_but_for_rounding(line: str, other: str) -> bool:
    """The last digits are those of one machine: 200 steps in float32 carry a rounding of 1e-7 so far."""
    number = r"\d+\.\d+"
    pairs = zip(re.findall(number, line), re.findall(number, other), strict=False)
    words = re.sub(number, "#", line).split() == re.sub(number, "#", other).split()
    return words and all(float(a) == pytest.approx(float(b), rel=1e-2) for a, b in pairs)


def test_the_loop_of_ones_own_runs() -> None:
    [code] = blocks("In your own loop", "python")
    indices = torch.stack([torch.randint(size, (200,)) for size in (438, 6, 11)], dim=1)
    printed: list[float] = []
    names = {"indices": indices, "values": torch.randn(200), "print": printed.append}
    assert "range(1000)" in code
    exec(code.replace("range(1000)", "range(3)"), names)
    assert len(printed) == 1
    assert printed[0] >= 0


def test_every_key_that_is_named_is_one() -> None:
    known = {
        key
        for task in ({}, {"target": "a:b"}, {"kind": "classification"})
        for key in all_keys(section_forms({"task": task}))
    }
    sections = "|".join(sorted({key.partition(".")[0] for key in known}))
    named = set(re.findall(rf"`(?:[^`]*\s)?((?:{sections})\.[a-z_]+)(?==|`|\s)", README))
    assert len(named) > 30
    assert named - known == set()


def test_every_file_that_is_named_is_there() -> None:
    named = set(re.findall(r"(?:configs|distsam|launch|slurm|tests)/[\w/*.]+\w", README))
    assert len(named) > 8
    assert [path for path in named if not list(ROOT.glob(path))] == []


def test_the_launcher_is_there_without_the_repository() -> None:
    done = run([sys.executable, "-m", "distsam.launch", "--help"])
    assert done.returncode == 0, done.stderr
    assert "--nproc-per-node" in done.stdout
