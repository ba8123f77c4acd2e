"""summary.json: written at the end of a run, kept when a run that had ended is started again."""

import json
import math
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import distsam
from distsam.train.run_folder import write_atomically

Summary = dict[str, Any]


def write_summary(path: Path, summary: Mapping[str, Any]) -> None:
    """Write `summary` as JSON; numbers that are not finite become null."""
    clean = {key: None if _is_no_number(value) else value for key, value in summary.items()}
    write_atomically(path, json.dumps(clean, indent=1, allow_nan=False) + "\n")


def read_summary(path: Path, must_hold: Mapping[str, Any]) -> Summary | None:
    """The summary in `path` if there is one that holds all of `must_hold`, else None."""
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(summary, dict) or any(summary.get(key) != value for key, value in must_hold.items()):
        return None
    return summary


def versions() -> dict[str, str]:
    """What computed the numbers of a run, and what gave its data."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "distsam": distsam.__version__,
        **{name: metadata.version(name) for name in ("numpy", "tensorly")},
    }


def _is_no_number(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
