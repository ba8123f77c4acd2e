"""What may I type? `distsam train`, `distsam predict`, `distsam evaluate`."""

import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from distsam import __version__
from distsam.errors import CheckpointFailed, InputError, SharedInputError, TrainingDiverged

app = typer.Typer(
    help="Train sharded tensor networks with distributed SAM and see the norm deviation of their cores.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_SCORES = ("r2", "r2_uncentred", "rmse", "mae")
_SPEAKER_S = 10.0
_SPLITS = ("train", "validation", "heldout")


def main() -> None:
    """The console script."""
    try:
        app()
    except SystemExit as end:
        if "RANK" not in os.environ and "SLURM_STEP_ID" not in os.environ:
            raise
        # Threads of gloo outlive the process group and abort the process (1 of 40 ends) when one of them wants
        # the interpreter while it is taken down. All files are closed by now, so nothing is left to take down.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code if isinstance(end.code, int) else 0)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"distsam {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="YAML file of the run.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="section.key=value, such as optim.rho=0.1; the last one wins.")
    ] = None,
) -> None:
    """Train; alone, under torchrun or under srun."""
    with _mistakes_as_messages():
        from distsam.train import load_config

        settings = load_config(config, overrides or [])
        # Only now: it loads torch, which a misspelt key need not wait for.
        from distsam.train import run_training

        summary = run_training(settings)
        if _rank() == 0:
            _draw(settings.run.dir)
            _print_summary(summary, settings.run.dir)
    if summary["stopped_by"] == "SIGINT":
        raise typer.Exit(130)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Score the best weights of a run again, in one process."""
    with _mistakes_as_messages():
        from distsam.train import evaluate_run

        scores = evaluate_run(run)
        print(json.dumps(_without_infinities(scores)) if as_json else _table(scores))


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    output: Annotated[Path, typer.Option("-o", "--output", help=".npz file to write.")],
    entries: Annotated[
        Path | None, typer.Option(help=".npy or .npz with (N, order) indices; the whole tensor without it.")
    ] = None,
) -> None:
    """Complete the tensor (known entries are kept), or predict given entries, in one process."""
    with _mistakes_as_messages():
        from distsam.train import predict_run

        print(f"{output}: {predict_run(run, output, entries)}")


def _without_infinities(scores: Mapping[str, float | None]) -> dict[str, float | None]:
    """What is not finite becomes null, as in summary.json: JSON has no word for it."""
    return {key: None if value is None or not math.isfinite(value) else value for key, value in scores.items()}


@contextmanager
def _mistakes_as_messages() -> Iterator[None]:
    """A user's mistake is one line and exit code 2; a run that diverged or could not be saved, one line and 1."""
    try:
        yield
    except InputError as error:
        _say(error, is_shared=isinstance(error, SharedInputError))
        raise typer.Exit(2) from None
    except (TrainingDiverged, CheckpointFailed) as error:
        _say(error, is_shared=True)
        raise typer.Exit(1) from None


def _say(error: Exception, is_shared: bool) -> None:
    """Print `error` once: rank 0 what all ranks share; the first rank of each machine what it found before they met."""
    rank, machine = _rank(), os.environ.get("GROUP_RANK")
    if rank == 0:
        print(f"distsam: {error}", file=sys.stderr, flush=True)
        return
    if not is_shared and _local_rank() == 0:
        print(f"distsam: rank {rank}: {error}", file=sys.stderr, flush=True)
        return
    if is_shared and machine not in (None, "0"):
        return  # its launcher must end with this code too, before it loses that of rank 0
    # torchrun kills a machine's ranks when the first one ends: let that be the one that has something to say.
    time.sleep(_SPEAKER_S)
    if not is_shared and machine is not None:
        print(f"distsam: rank {rank}: {error}", file=sys.stderr, flush=True)


def _rank() -> int:
    return _place("RANK", "SLURM_PROCID")


def _local_rank() -> int:
    return _place("LOCAL_RANK", "SLURM_LOCALID")


def _place(torchrun: str, slurm: str) -> int:
    if "RANK" in os.environ:
        return int(os.environ.get(torchrun, "0"))
    return int(os.environ.get(slurm, "0")) if "SLURM_STEP_ID" in os.environ else 0


def _draw(run_dir: str) -> None:
    from distsam.report.curves import draw_curves

    try:
        draw_curves(run_dir)
    except Exception as error:  # the run is done and saved: a picture that fails must not fail it
        print(f"distsam: curves.png could not be drawn: {error}", file=sys.stderr)


def _print_summary(summary: Mapping[str, Any], run_dir: str) -> None:
    deviations = [value for key, value in summary.items() if key.endswith("/norm_deviation")]
    weights = f"best weights, step {summary['best_step']}" if summary["weights"] == "best" else "last weights"
    print(f"\n{_table(summary)}\n")
    print(f"held-out R2     {_number(summary['heldout/r2'])}  ({weights})")
    print(f"held-out RMSE   {_number(summary['heldout/rmse'])}")
    print(f"norm deviation  {', '.join(_number(value) for value in deviations)}  (last step)")
    print(f"steps           {summary['steps']}  (ended by {summary['stopped_by']}, {summary['wall_s']:.1f} s)")
    print(f"run folder      {run_dir}", flush=True)


def _table(scores: Mapping[str, Any]) -> str:
    lines = [" " * 12 + "".join(f"{name:>14}" for name in _SCORES)]
    for split in _SPLITS:
        cells = "".join(f"{_number(scores[f'{split}/{name}']):>14}" for name in _SCORES)
        lines.append(f"{split:<12}{cells}")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
