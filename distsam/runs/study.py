"""What the folder of a study holds: many runs for one question, such as a comparison of methods or a search."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distsam.errors import InputError
from distsam.runs.atomic import is_part, write_atomically


@dataclass(frozen=True)
class StudyFolder:
    """Paths of a study; nothing is created by naming them."""

    path: Path

    @property
    def base(self) -> Path:
        """The config that every run of the study begins with, resolved."""
        return self.path / "base.yaml"

    @property
    def plan(self) -> Path:
        """What is asked: everything that the runs follow from."""
        return self.path / "plan.json"

    @property
    def log(self) -> Path:
        """What the runs say of themselves."""
        return self.path / "log.txt"

    @property
    def claims(self) -> Path:
        """One lock a run, held by the process that works on it."""
        return self.path / "claims"

    @property
    def comparison(self) -> Path:
        """The result of a comparison."""
        return self.path / "compare.json"

    @property
    def tuning(self) -> Path:
        """The result of a search."""
        return self.path / "tune.json"

    @property
    def best(self) -> Path:
        """The best config of a search."""
        return self.path / "best.yaml"

    @property
    def search_plot(self) -> Path:
        """The picture of a search."""
        return self.path / "tune.png"

    def is_study(self) -> bool:
        """Whether this is the folder of a study."""
        try:
            return self.plan.is_file()
        except (OSError, ValueError):
            return False

    def begin(self, base: str, plan: Mapping[str, Any]) -> None:
        """Write down what is asked; where the folder holds the same question already, it is gone on with.

        Args:
            base: text of base.yaml.
            plan: content of plan.json.

        Raises:
            InputError: the folder holds another question, or something else, or cannot be written.
        """
        if self.is_study():
            self._check_same(base, plan)
            return
        try:
            # A kill may have come before the plan was there.
            ours = (self.base.name, self.claims.name)
            if self.path.exists() and any(p.name not in ours and not is_part(p) for p in self.path.iterdir()):
                raise InputError(f"--output: {self.path} is not empty and holds no study; choose another folder")
            self.claims.mkdir(parents=True, exist_ok=True)
            write_atomically(self.base, base)
            # The plan comes last: a folder that has one is complete.
            write_atomically(self.plan, json.dumps(plan, indent=1) + "\n")
        except OSError as error:
            raise InputError(f"--output: {self.path} cannot be written ({error.strerror}); choose another") from None

    def read_plan(self) -> dict[str, Any]:
        """Content of plan.json.

        Raises:
            InputError: there is none that can be read.
        """
        try:
            plan = json.loads(self.plan.read_bytes())
        except (OSError, ValueError, RecursionError):
            plan = None
        if not isinstance(plan, dict):
            raise InputError(f"{self.plan}: cannot be read; give the folder of a comparison or a search")
        return plan

    def _check_same(self, base: str, plan: Mapping[str, Any]) -> None:
        before = self.read_plan()
        wanted = json.loads(json.dumps(plan))
        for key in {**before, **wanted}:
            if before.get(key) != wanted.get(key):
                raise InputError(
                    f"--output: {self.path} holds another study, of which {key} is otherwise; choose another folder, "
                    f"or `distsam work {self.path}` to go on with that one"
                )
        if self.base.read_text(encoding="utf-8") != base:
            raise InputError(f"--output: {self.path} holds a study of another config; choose another folder")


def of_a_study(path: Path) -> str:
    """What to say to somebody who takes the folder of a study for that of a run."""
    runs = next((str(file.parent) for file in sorted(path.glob("*/*/**/config.yaml"))), f"{path}/...")
    return f"is a study of many runs; `distsam work {path}` ends it and shows its result, its runs are such as {runs}"


def write_result(path: Path, result: Mapping[str, Any]) -> None:
    """Replace a result file.

    Raises:
        InputError: it cannot be written.
    """
    try:
        write_atomically(path, json.dumps(result, indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None
