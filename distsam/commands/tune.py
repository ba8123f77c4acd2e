"""`distsam tune`: good settings for a tensor of one's own, within so many minutes."""

from pathlib import Path
from typing import Annotated

import typer

from distsam.commands.loading import end_loading
from distsam.commands.messages import mistakes_as_messages
from distsam.errors import InputError


def tune(
    config: Annotated[Path, typer.Argument(help="YAML file of a run, over which settings are laid.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="section.key=value for all settings, such as data.path=mine.npy.")
    ] = None,
    *,
    over: Annotated[
        list[str] | None,
        typer.Option(
            help="section.key=SPACE, several times: log:LOW:HIGH, linear:LOW:HIGH, int:LOW:HIGH, logint:LOW:HIGH or "
            "A,B,C. Without it: network, learning rate, decay, and what optim.method has, but for keys that are given."
        ),
    ] = None,
    minutes: Annotated[float, typer.Option(help="Wall time of the search.")] = 10.0,
    seeds: Annotated[int, typer.Option(help="Seeds over which the best settings are averaged.")] = 2,
    trials: Annotated[int | None, typer.Option(help="At most so many settings.")] = None,
    workers: Annotated[int, typer.Option(help="Runs at the same time on this machine.")] = 1,
    slurm: Annotated[
        int, typer.Option(help="Instead: tasks of a Slurm job array, each doing one run after the other.")
    ] = 0,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder; runs/tune-<name of the config> without it.")
    ] = None,
) -> None:
    """Search for the settings that are best on the validation entries; writes best.yaml. Goes on after a kill."""
    with mistakes_as_messages():
        from distsam.commands.studies import check_workers, run_study
        from distsam.runs.study import StudyFolder
        from distsam.train import load_config
        from distsam.train.studies.tuning_plan import plan_tuning

        check_workers(workers, slurm)
        settings = load_config(config, overrides or [])
        spaces = dict(_split(text) for text in over or [])
        folder = StudyFolder(output or Path("runs") / f"tune-{config.stem}")
        fixed = {override.partition("=")[0] for override in overrides or []}
        plan_tuning(folder, settings, spaces, minutes=minutes, num_seeds=seeds, trials=trials, fixed=fixed)
        end_loading()
        run_study(folder, workers, slurm)


def _split(text: str) -> tuple[str, str]:
    key, equals, space = text.partition("=")
    if not equals or "." not in key:
        raise InputError(
            f"--over: {text!r} is no space of a key; write section.key=SPACE, such as optim.lr=log:1e-4:0.1"
        )
    return key, space
