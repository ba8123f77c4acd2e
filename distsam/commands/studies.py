"""What the commands of a study have in common: the runs are done, then the result is written and shown."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from distsam.commands.table import number
from distsam.environment import place
from distsam.errors import InputError
from distsam.runs.folder import RunFolder
from distsam.runs.numbers import without_infinities
from distsam.runs.study import StudyFolder, write_result
from distsam.runs.summary import read_summary

_MAX_SHOWN = 5

_SCRIPT = """#!/bin/bash
#SBATCH --job-name=distsam-study
#SBATCH --array=0-{last}
#SBATCH --ntasks=1
#SBATCH --output={log}
exec {python} -m distsam work {folder}
"""


def run_study(folder: StudyFolder, workers: int, slurm: int = 0) -> None:
    """Do what is left of the study, here or on Slurm, and show what came of it.

    Raises:
        InputError: the study cannot be done.
    """
    check_workers(workers, slurm)
    if (size := place().world_size) > 1:
        raise InputError(f"{folder.path}: a study is done by single processes, not by {size} ranks; start it alone")
    if slurm:
        print(_submit(folder, slurm))
        return
    from distsam.train.studies.comparison import Comparison

    study = do_runs(folder, workers)
    if isinstance(study, Comparison):
        _show_comparison(study)
    else:
        _show_search(study)


def _show_comparison(study: Any) -> None:
    result = _summarised(study)
    write_result(study.folder.comparison, result)
    print(comparison_table(result))
    print(f"\n{'comparison':<15} {study.folder.comparison}")


def _show_search(study: Any) -> None:
    from distsam.report.search import plot_search
    from distsam.runs.atomic import write_atomically

    folder, result = study.folder, without_infinities(study.facts())
    try:
        write_atomically(folder.best, study.best_config())
        plot_search(result, folder.search_plot)
    except OSError as error:
        raise InputError(f"{folder.path}: cannot be written ({error.strerror})") from None
    write_result(folder.tuning, result)
    print(search_table(result, folder))


def check_workers(workers: int, slurm: int) -> None:
    """InputError where nobody would do the work; asked before anything is written."""
    if workers < 1:
        raise InputError(f"--workers: {workers} is too few; give 1 or more")
    if slurm < 0:
        raise InputError(f"--slurm: {slurm} is no number of tasks; give 1 or more")
    if slurm and shutil.which("sbatch") is None:
        raise InputError("--slurm: there is no sbatch here; start it where Slurm is, or leave it out for --workers")


def do_runs(folder: StudyFolder, workers: int, tied: bool = False) -> Any:
    """The study, once none of its runs is left to do."""
    from distsam.train.studies.comparison import Comparison
    from distsam.train.studies.jobs import Interrupted
    from distsam.train.studies.tuning import KIND, Tuning
    from distsam.train.studies.work import INTERRUPTED, WorkerEnded, end_with_parent, work_together

    if tied:
        end_with_parent()
    study = (Tuning if folder.read_plan().get("kind") == KIND else Comparison)(folder)
    try:
        work_together(study, workers)
    except (Interrupted, KeyboardInterrupt, WorkerEnded) as end:
        code = end.code if isinstance(end, WorkerEnded) else INTERRUPTED
        if not tied and code == INTERRUPTED:
            print(f"distsam: stopped; the same command, or `distsam work {folder.path}`, goes on", file=sys.stderr)
        raise SystemExit(code) from None
    return study


def comparison_table(result: dict[str, Any]) -> str:
    """The arms, a line each, and the verdict."""
    differences = {d["arm"]: d for d in result["differences"]}
    width = max(map(len, result["arms"])) + 2
    against = f"minus {result['reference']}"
    head = (
        f"{'arm':<{width}}{result['score']:>12}{'95 %':>22}{against:>15}{'95 %':>24}{'corrected p':>13}{'ms/step':>9}"
    )
    lines = [head + f"{'target, s':>14}{'deviation':>12}  tuned"]
    for name, arm in result["arms"].items():
        d = differences.get(name)
        cells = ["", "", ""] if d is None else [number(d["mean"]), _interval(d["interval"]), _p(d["p_corrected"])]
        tuned = ", ".join(f"{key}={value}" for key, value in arm["tuned"].items())
        lines.append(
            f"{name:<{width}}{number(arm['mean']):>12}{_interval(arm['interval']):>22}"
            f"{cells[0]:>15}{cells[1]:>24}{cells[2]:>13}{_ms(arm['step_s']):>9}"
            f"{_target(arm, len(result['seeds'])):>14}{number(arm['deviation']):>12}  {tuned}".rstrip()
        )
    goal, target, first = result["goal"]["key"], number(result["target"]), result["reference"]
    lines += ["", f"target: {goal} {target}, the mean at which the runs of {first} end"]
    notes = [f"note: {note}" for note in result["notes"]]
    return "\n".join(["", *lines, "", *notes, result["verdict"]])


def search_table(result: dict[str, Any], folder: StudyFolder) -> str:
    """The best settings, and what people do next."""
    goal, shown = result["goal"]["key"], result["trials"][:_MAX_SHOWN]
    lines = ["", f"{goal:>14}{'steps':>8}  setting"]
    for trial in shown:
        settings = ", ".join(f"{key}={value}" for key, value in trial["settings"].items() if value is not None)
        steps = result["steps"][trial["rung"]]
        lines.append(f"{number(trial['goal']):>14}{steps:>8}  {settings or 'the config as it is'}")
    mattered = ", ".join(f"{key} {share:.0%}" for key, share in result["importances"].items())
    best = result["best"]
    facts = [
        ("settings", f"{len(result['trials'])} in {result['minutes']:.1f} minutes"),
        ("what mattered", mattered or "too few settings to tell"),
        ("best runs", ", ".join(str(folder.path / run) for run in best["runs"])),
    ]
    for run in best["runs"]:
        summary = read_summary(RunFolder(folder.path / run).summary)
        value = None if summary is None else summary.numbers.get(result["score"])
        facts.append((result["score"], f"{number(value)}  ({run})"))
    facts += [("picture", str(folder.search_plot)), ("next", f"distsam train {folder.best}")]
    return "\n".join([*lines, "", *(f"{label:<15} {text}" for label, text in facts)])


def _target(arm: dict[str, Any], num_seeds: int) -> str:
    """Seconds to the target, and how many seeds reached it where not all did."""
    some = "" if arm["reached"] == num_seeds else f" ({arm['reached']}/{num_seeds})"
    return number(arm["target_s"]) + some


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.3g}"


def _interval(interval: list[float] | None) -> str:
    return "-" if interval is None else f"{interval[0]:.4g} .. {interval[1]:.4g}"


def _p(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"


def _summarised(study: Any) -> dict[str, Any]:
    from distsam.report.comparison import summarise

    result: dict[str, Any] = without_infinities(summarise(study.folder.path, study.facts()))
    return result


def _submit(folder: StudyFolder, tasks: int) -> str:
    """Submit a job array whose tasks share the runs."""
    import shlex

    script = folder.path.absolute() / "study.sbatch"
    names = {"log": folder.path.absolute() / "slurm-%A_%a.out", "python": shlex.quote(sys.executable)}
    where = shlex.quote(str(folder.path.absolute()))
    script.write_text(_SCRIPT.format(last=tasks - 1, folder=where, **names), encoding="utf-8")
    done = subprocess.run(["sbatch", str(script)], capture_output=True, text=True, cwd=Path.cwd(), check=False)
    if done.returncode:
        raise InputError(f"--slurm: sbatch refused {script}: {' '.join(done.stderr.split())}")
    return f"{done.stdout.strip()}; when it is over, `distsam work {folder.path}` shows the result"
