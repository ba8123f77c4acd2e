"""about.json: what a run that is under way is to come to, for those who look at it before it has a summary."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distsam.runs.atomic import write_atomically
from distsam.runs.summary import SavedGoal, goal_of


@dataclass(frozen=True)
class About:
    """Written when a run begins, and again when it goes on.

    Attributes:
        steps: the step at which it ends, unless something ends it before.
        first_step: the step from which it went on; 0 at its beginning.
        goal: the score that chooses weights; None in what is read of a file that says no goal.
    """

    steps: int
    first_step: int
    goal: SavedGoal | None

    def write(self, path: Path) -> None:
        """Replace the file `path`."""
        write_atomically(path, json.dumps(asdict(self), indent=1) + "\n")


def read_about(path: Path) -> About | None:
    """What `path` says; None where there is no such file (runs of older versions) or it cannot be read."""
    try:
        content = json.loads(path.read_bytes())
        return _parsed(content) if isinstance(content, Mapping) else None
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def _parsed(content: Mapping[str, Any]) -> About:
    goal = content.get("goal")
    return About(int(content["steps"]), int(content["first_step"]), None if goal is None else goal_of(**goal))
