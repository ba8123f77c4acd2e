"""The mirror of a run at Weights & Biases."""

import atexit
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from distsam.runs.atomic import write_atomically
from distsam.runs.folder import RunFolder
from distsam.runs.numbers import is_finite
from distsam.runs.rows import STEP

_PATIENCE_S = 30


class WandbTracker:
    """Sends the rows to Weights & Biases; when that fails it says so once and the training goes on.

    Args:
        mode: "disabled" (wandb is not even imported), "offline" or "online".
        folder: run folder; wandb writes below it.
        project, name, group: where the run stands at W&B; without a name it has the folder's.
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
        if mode != "disabled":
            about = {"project": project, "name": name or folder.name, "group": group, "config": dict(config or {})}
            self._run = self._attempt(lambda: _start(mode, folder, about))

    def log(self, row: Mapping[str, float | int | None]) -> None:
        """Send one row, without what is not finite."""
        if self._run is not None:
            self._attempt(lambda: self._run.log({key: value for key, value in row.items() if is_finite(value)}))

    def alert(self, message: str) -> None:
        """Send one message; W&B shows it and may mail it, as its user has set there."""
        if self._run is not None:
            self._attempt(lambda: self._run.alert(title=f"distsam: {message[:60]}", text=message))

    def close(self) -> None:
        """Tell W&B that the run is over."""
        if self._run is not None:
            self._attempt(lambda: self._run.finish())
            self._run = None

    def _attempt(self, call: Callable[[], Any]) -> Any:
        """What `call` gives; where it raises, None, and this tracker takes no more."""
        try:
            return call()
        except Exception as error:  # of any type, from network errors to the end of wandb's own process
            self._run = None
            # When Python ends wandb calls its own process once more, and prints a long traceback if that is gone.
            atexit.register(_leave_quietly)
            reason = " ".join(str(error).split()) or type(error).__name__
            print(f"distsam: W&B failed, the run goes on without it: {reason}", file=sys.stderr)
            return None


def _leave_quietly() -> None:
    with suppress(Exception):
        import wandb

        wandb.teardown()


def _start(mode: str, folder: Path, about: Mapping[str, Any]) -> Any:
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
    # A run that goes on is the run that it was: one id, all rows.
    own = RunFolder(folder).wandb_id
    run_id = own.read_text().strip() if own.exists() else None
    if mode == "online" and run_id:
        about = {**about, "resume": "allow"}
    run = wandb.init(mode=mode, dir=str(folder), id=run_id, settings=wandb.Settings(**settings), **about)  # type: ignore[arg-type]
    if run_id is None:
        write_atomically(own, f"{run.id}\n")
    run.define_metric(STEP)
    run.define_metric("*", step_metric=STEP)
    return run
