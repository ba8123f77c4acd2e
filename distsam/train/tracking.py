"""metrics.jsonl, the source of truth of a run, and its mirror at Weights & Biases."""

import atexit
import json
import math
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, cast

STEP = "train/step"

_PATIENCE_S = 30

Row = dict[str, float | int | None]


class MetricsFile:
    """Appends rows to metrics.jsonl; every row is on its way to the disk before `log` returns.

    Args:
        path: the file.
        start_step: the step that the run goes on from; rows of later steps are of a life that was undone.
    """

    def __init__(self, path: Path, start_step: int) -> None:
        _keep_rows_until(path, start_step)
        self._stream = path.open("a", encoding="utf-8")

    def log(self, row: Mapping[str, float | int | None]) -> None:
        """Append one row; what is not finite becomes null, because JSON has no word for it."""
        clean = {key: value if _finite(value) else None for key, value in row.items()}
        self._stream.write(json.dumps(clean, allow_nan=False) + "\n")
        self._stream.flush()

    def close(self) -> None:
        """No more rows."""
        self._stream.close()


class WandbMirror:
    """Sends the same rows to Weights & Biases; when that fails it says so once and the training goes on.

    Args:
        mode: "disabled" (wandb is not even imported), "offline" or "online".
        folder: run folder; wandb writes below it.
        config: the resolved config, shown with the run.
    """

    def __init__(
        self,
        mode: str,
        folder: Path,
        *,
        project: str = "distsam",
        name: str | None = None,
        group: str | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self._run: Any = None
        if mode == "disabled":
            return
        try:
            self._run = _start(mode, folder, project, name, group, config)
        except Exception as error:
            self._give_up(error)

    def log(self, row: Mapping[str, float | int | None]) -> None:
        """Mirror one row, without what is not finite."""
        if self._run is None:
            return
        try:
            self._run.log({key: value for key, value in row.items() if _finite(value)})
        except Exception as error:
            self._give_up(error)

    def close(self) -> None:
        """Say that the run is over."""
        if self._run is None:
            return
        try:
            self._run.finish()
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        # wandb raises what it likes, from network errors to its own process being gone.
        self._run = None
        # At the end wandb speaks to its process once more; if that is gone, it would print where that failed.
        atexit.register(_leave_quietly)
        reason = " ".join(str(error).split()) or type(error).__name__
        print(f"distsam: W&B failed, the run goes on without it: {reason}", file=sys.stderr)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; a last line that was cut short is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and STEP in row:
            rows.append(row)
    return rows


def _keep_rows_until(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = [row for row in read_rows(path) if step > 0 and row[STEP] <= step]
    part = path.with_name(f".{path.name}.tmp")
    with part.open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in kept)
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(path)


def _leave_quietly() -> None:
    with suppress(Exception):
        import wandb

        wandb.teardown()


def _start(
    mode: str,
    folder: Path,
    project: str,
    name: str | None,
    group: str | None,
    config: Mapping[str, Any] | None,
) -> Any:
    import wandb

    settings: dict[str, Any] = {
        "x_disable_stats": True,
        "console": "off",
        "silent": True,
        # A server that does not answer may cost seconds, not the run: the other ranks wait for this one.
        "init_timeout": _PATIENCE_S,
        "login_timeout": _PATIENCE_S,
    }
    if "finish_timeout" in getattr(wandb.Settings, "model_fields", {}):  # not in older versions
        settings["finish_timeout"] = _PATIENCE_S
    run = wandb.init(
        project=project,
        name=name or folder.name,
        group=group,
        mode=cast(Literal["offline", "online"], mode),
        dir=str(folder),
        config=dict(config or {}),
        settings=wandb.Settings(**settings),
    )
    run.define_metric(STEP)
    run.define_metric("*", step_metric=STEP)
    return run


def _finite(value: float | int | None) -> bool:
    return value is not None and math.isfinite(value)
