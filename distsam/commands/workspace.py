"""`distsam wandb-workspace`: the panels that show a run at Weights & Biases, without clicking them together."""

from pathlib import Path
from typing import Annotated, Any

import typer

from distsam.commands.messages import mistakes_as_messages
from distsam.errors import InputError


def wandb_workspace(
    run: Annotated[Path, typer.Argument(help="Run folder: its rows say which panels there can be.")],
    *,
    project: Annotated[
        str | None, typer.Option(help="Project at W&B; without it wandb.project of the run's config.")
    ] = None,
    entity: Annotated[str | None, typer.Option(help="User or team whose project it is.")] = None,
    name: Annotated[str, typer.Option(help="Name of the workspace.")] = "distsam",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="JSON file to write in place of saving it at W&B.")
    ] = None,
) -> None:
    """Save a workspace at W&B: scores, norm deviation, core norms and rates of the runs of a project."""
    with mistakes_as_messages():
        if output is None and not entity:
            raise InputError("--entity: is missing; give the user or team at W&B, or a file with -o FILE")
        from distsam.report.panels import planned_sections
        from distsam.runs.about import read_about
        from distsam.runs.folder import RunFolder
        from distsam.runs.tail import RowTail

        folder = RunFolder(run)
        if not folder.is_run():
            raise InputError(f"{run}: is no run folder; give the folder of a run")
        rows, _ = RowTail(folder.metrics).read()
        about = read_about(folder.about)
        sections = planned_sections(rows, None if about is None else about.goal)
        if not sections:
            raise InputError(f"{folder.metrics}: has no rows yet; wait until the run has logged its first step")
        from distsam.report.wandb_workspace import make_workspace, save_workspace, write_workspace

        workspace = make_workspace(sections, entity or "", project or _project_of(folder.config), name)
        num_panels = sum(map(len, sections.values()))
        if output is None:
            print(f"{save_workspace(workspace)}: {num_panels} panels in {len(sections)} sections")
        else:
            write_workspace(workspace, output)
            print(f"{output}: {num_panels} panels in {len(sections)} sections")


def _project_of(config: Path) -> str:
    from distsam.train import load_config

    settings: Any = load_config(config, [])
    return str(settings.wandb.project)
