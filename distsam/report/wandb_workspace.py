"""Panels as a workspace of Weights & Biases; the one importer of wandb_workspaces."""

import json
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distsam.errors import ArgumentError, InputError
from distsam.report.panels import PanelPlan
from distsam.runs.atomic import write_atomically
from distsam.runs.rows import STEP

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is written for a pydantic of before
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
except ImportError as error:
    raise ArgumentError(
        "wandb-workspace",
        f"wandb-workspaces is not installed or cannot be imported ({error}); pip install 'distsam[workspace]'",
    ) from None


def make_workspace(sections: Mapping[str, Sequence[PanelPlan]], entity: str, project: str, name: str) -> ws.Workspace:
    """The workspace; needs neither an account nor a network.

    Args:
        sections: name -> panels.
        entity: user or team whose project it is.
        project: of the runs.
        name: of the workspace.

    Raises:
        InputError: a name that W&B does not take.
    """
    try:
        return ws.Workspace(
            entity=entity,
            project=project,
            name=name,
            sections=[
                ws.Section(name=title, panels=[_panel(plan) for plan in panels], is_open=True)
                for title, panels in sections.items()
            ],
            # W&B counts rows; the steps of a run are in them.
            settings=ws.WorkspaceSettings(x_axis=STEP),
        )
    except ValueError as error:  # of pydantic, over several lines
        raise InputError(f"--name: {name!r} is not taken by W&B ({_last_line(error)}); choose another") from None


def write_workspace(workspace: ws.Workspace, path: Path) -> None:
    """Write what W&B keeps of a workspace: its name and its spec.

    Raises:
        InputError: the file cannot be written.
    """
    # Private there, but what its `save` sends; the range of versions in pyproject.toml is narrow for it.
    view = workspace._to_model()
    spec = json.loads(view.spec.model_dump_json(by_alias=True, exclude_none=True))
    content = {"entity": view.entity, "project": view.project, "displayName": view.display_name, "spec": spec}
    try:
        write_atomically(path, json.dumps(content, indent=1) + "\n")
    except OSError as error:
        raise InputError(f"--output: {path} cannot be written ({error.strerror}); choose another file") from None


def save_workspace(workspace: ws.Workspace) -> str:
    """Save it at W&B as a new workspace of its project.

    Returns:
        Its address.

    Raises:
        InputError: nobody is logged in, or W&B cannot be reached or refuses it.
    """
    try:
        with _nobody_asked():
            workspace.save()
            return str(workspace.url)
    except Exception as error:  # of any type, from a missing login to the network
        raise InputError(
            f"wandb-workspace: W&B did not take it ({_last_line(error)}); log in with `wandb login`, or write it "
            "into a file with -o FILE"
        ) from None


def _panel(plan: PanelPlan) -> Any:
    return wr.LinePlot(title=plan.title, x=STEP, y=list(plan.keys), log_y=plan.is_log or None)


@contextmanager
def _nobody_asked() -> Iterator[None]:
    """Where nobody is logged in wandb asks for a key, if it finds a terminal."""
    asked = sys.stdin
    with open(os.devnull) as nothing:
        sys.stdin = nothing
        try:
            yield
        finally:
            sys.stdin = asked


def _last_line(error: Exception) -> str:
    """What an error of W&B or pydantic says in the end, with one blank between words."""
    lines = [
        " ".join(line.split()) for line in str(error).splitlines() if line.strip() and "errors.pydantic" not in line
    ]
    return lines[-1].rstrip(".") if lines else type(error).__name__
