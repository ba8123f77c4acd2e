"""summary.json: what a run came to, written at its end and kept when a run that had ended is started again."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from distsam.runs.atomic import write_atomically
from distsam.runs.numbers import without_infinities

Number = float | int | None


@dataclass(frozen=True)
class SavedGoal:
    """By which score weights were chosen, and how the scores are to be shown.

    Attributes:
        key: the score that decides, "<part>/<column>" such as "validation/r2".
        higher_is_better: its direction.
        columns: the scores of every part, in the order in which a table shows them.
        headline: (what people call it, key) of the scores that are shown by themselves.
    """

    key: str
    higher_is_better: bool = True
    columns: tuple[str, ...] = ()
    headline: tuple[tuple[str, str], ...] = ()

    @property
    def column(self) -> str:
        """The score without its part, such as "r2"."""
        return self.key.rpartition("/")[2]


@dataclass(frozen=True)
class SavedNetwork:
    """One tensor network of the model: format, sizes of its modes, and the names of its cores in their order."""

    format: str
    shape: tuple[int, ...]
    core_names: tuple[str, ...]
    num_parameters: int


@dataclass
class Summary:
    """The results of a run. The file is flat; keys that are not known here are kept in `more`.

    Attributes:
        goal: None in summaries of versions that did not write it.
        networks: name -> network.
        weights: "best" or "last", the weights that the scores are of; "refit" for those of the second fit, in a folder
            of its own.
        best_step: the step of the best weights; None where no evaluation had a finite score.
        steps: updates that were done.
        stopped_by: why it ended.
        wall_s: seconds of all its parts.
        numbers: scores ("<part>/<column>", and "last/<part>/<column>" of the last weights), balance and counters: all
            keys with a "/".
        more: everything else, as it stands in the file.
    """

    steps: int = 0
    wall_s: float = 0.0
    stopped_by: str | None = None
    weights: str = "last"
    best_step: int | None = None
    goal: SavedGoal | None = None
    networks: dict[str, SavedNetwork] = field(default_factory=dict)
    numbers: dict[str, Number] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The content of the file, flat: `numbers` and `more` beside the rest, numbers first."""
        known = {name: value for name, value in asdict(self).items() if name not in ("numbers", "more")}
        return without_infinities({**self.numbers, **known, **self.more})

    def write(self, path: Path) -> None:
        """Replace the file `path`; numbers that are not finite become null."""
        write_atomically(path, json.dumps(self.as_json(), indent=1, allow_nan=False) + "\n")


def read_summary(path: Path, must_hold: Mapping[str, Any] | None = None) -> Summary | None:
    """The summary in `path`; None where there is none that can be read, or it does not hold all of `must_hold`."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or any(content.get(key) != value for key, value in (must_hold or {}).items()):
        return None
    return _parsed(content)


def score_parts(scores: Iterable[str], columns: Iterable[str]) -> list[str]:
    """The parts of which `scores` ("<part>/<column>") hold any of `columns`, in order; "last/..." is none."""
    wanted = set(columns)
    pairs = (key.rpartition("/") for key in scores)
    return list(dict.fromkeys(part for part, _, column in pairs if column in wanted and part and "/" not in part))


def _parsed(content: dict[str, Any]) -> Summary | None:
    """The typed summary; None where a key that we write ourselves holds something else."""
    plain = {f.name for f in fields(Summary)} - {"goal", "networks", "numbers", "more"}
    numbers = {key: value for key, value in content.items() if "/" in key}
    own = {key: content[key] for key in plain & content.keys()}
    rest = content.keys() - numbers.keys() - own.keys() - {"goal", "networks"}
    try:
        goal = None if content.get("goal") is None else goal_of(**content["goal"])
        networks = {name: _network(**saved) for name, saved in content.get("networks", {}).items()}
    except (TypeError, ValueError, AttributeError):
        return None
    return Summary(
        **own, goal=goal, networks=networks, numbers=numbers, more={key: content[key] for key in content if key in rest}
    )


def goal_of(key: str, higher_is_better: bool, columns: list[str], headline: list[list[str]], **_: Any) -> SavedGoal:
    """A goal from its JSON; further keys are passed over. TypeError or ValueError where it is none."""
    return SavedGoal(str(key), bool(higher_is_better), tuple(columns), tuple((label, name) for label, name in headline))


def _network(format: str, shape: list[int], core_names: list[str], num_parameters: int, **_: Any) -> SavedNetwork:
    return SavedNetwork(str(format), tuple(shape), tuple(core_names), int(num_parameters))
