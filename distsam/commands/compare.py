"""`distsam compare`: is it SAM, or is it weight decay, the step size or chance?"""

from pathlib import Path
from typing import Annotated

import typer

from distsam.commands.loading import end_loading
from distsam.commands.messages import mistakes_as_messages


def compare(
    config: Annotated[Path, typer.Argument(help="YAML file of a run, over which the arms are laid.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="section.key=value for all arms, such as train.steps=500.")
    ] = None,
    *,
    arms: Annotated[
        str,
        typer.Option(
            help="Arms, with commas; the others are compared with the first. base, config (as it is), and sums of sam, "
            "das, nbar, obar and wd or l2, such as sam+wd."
        ),
    ] = "base,wd,l2,sam,das,nbar,sam+wd",
    arms_file: Annotated[
        Path | None,
        typer.Option(help="YAML file with arms of your own: {name: {set: {key: value}, tune: {key: space}}}."),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Runs of every arm in the result.")] = 5,
    trials: Annotated[int, typer.Option(help="Settings that every arm tries of what it tunes.")] = 7,
    tuning_seeds: Annotated[
        int, typer.Option(help="Runs of every such setting, on other seeds than the result's.")
    ] = 2,
    budget: Annotated[
        str, typer.Option(help="What a run may spend: steps, gradients (SAM takes 2 a step), or steps=N, seconds=S ...")
    ] = "steps",
    score: Annotated[str | None, typer.Option(help="Score to compare; the task's first one without it.")] = None,
    workers: Annotated[int, typer.Option(help="Runs at the same time on this machine.")] = 1,
    slurm: Annotated[
        int, typer.Option(help="Instead: tasks of a Slurm job array, each doing one run after the other.")
    ] = 0,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder; runs/compare-<name of the config> without it.")
    ] = None,
) -> None:
    """Train the same task in several ways, each tuned alike, and say whether they differ. Goes on after a kill."""
    with mistakes_as_messages():
        from distsam.commands.studies import check_workers, run_study
        from distsam.runs.study import StudyFolder
        from distsam.train import load_config
        from distsam.train.studies.arms import read_arms
        from distsam.train.studies.comparison import plan_comparison

        check_workers(workers, slurm)
        settings = load_config(config, overrides or [])
        folder = StudyFolder(output or Path("runs") / f"compare-{config.stem}")
        plan_comparison(
            folder,
            settings,
            [name.strip() for name in arms.split(",")],
            {} if arms_file is None else read_arms(arms_file),
            num_seeds=seeds,
            num_tuning_seeds=tuning_seeds,
            trials=trials,
            budget=budget,
            score=score,
        )
        end_loading()
        run_study(folder, workers, slurm)
