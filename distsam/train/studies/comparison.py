"""A comparison: arms that differ in how they train, each tuned alike, on the same data, starts and budget."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from distsam.errors import InputError
from distsam.runs.study import StudyFolder
from distsam.tasks.task import Goal, Task
from distsam.train import parts
from distsam.train.build import build_model
from distsam.train.config import Config
from distsam.train.config_file import load_config, to_yaml, with_overrides
from distsam.train.loop import evaluated
from distsam.train.settled import with_values
from distsam.train.studies.arms import Arm, as_overrides, check_arms, gradients_per_step, make_arms
from distsam.train.studies.jobs import Job, outcome
from distsam.train.studies.opened import check_validation, opened
from distsam.train.studies.space import points

KIND = "comparison"
# Seeds that choose hyperparameters lie here and above, those of the result below.
_FIRST_TUNING_SEED = 1000
_NO_LAST_STEP = 10**9


@dataclass(frozen=True)
class Budget:
    """What every arm may spend on a run: so many steps, gradients (SAM takes two a step) or seconds."""

    unit: str
    amount: float

    def overrides(self, config: Config) -> list[str]:
        """Of the config of an arm."""
        if self.unit == "seconds":
            for key in ("schedule", "rho_schedule", "alpha_schedule"):
                if (shape := getattr(config.optim, key, "constant")) != "constant":
                    raise InputError(f"--budget: seconds: optim.{key}={shape} needs a number of steps; give them")
            return [f"train.steps={_NO_LAST_STEP}", f"train.max_seconds={self.amount:g}"]
        steps = int(self.amount) // (gradients_per_step(config) if self.unit == "gradients" else 1)
        return [f"train.steps={steps}"]


def parse_budget(text: str, config: Config) -> Budget:
    """`steps`, `gradients` (as many as the config has steps), or with an amount: steps=N, gradients=N, seconds=S.

    Raises:
        InputError: it is none of them.
    """
    unit, _, amount = text.partition("=")
    if unit not in ("steps", "gradients", "seconds") or (unit == "seconds" and not amount):
        raise InputError(f"--budget: {text!r} is no budget; write steps, steps=N, gradients, gradients=N or seconds=S")
    try:
        value = float(amount) if amount else float(config.train.steps)
    except ValueError:
        value = 0.0
    if not 0 < value < _NO_LAST_STEP or (unit != "seconds" and value != int(value)):
        raise InputError(f"--budget: {text!r}: {amount!r} is no number of {unit}; give one above 0")
    if unit == "gradients" and value < 2:
        raise InputError(f"--budget: {text!r} is less than one step of SAM; give 2 or more")
    return Budget(unit, value)


class Comparison:
    """A comparison in its folder.

    Args:
        folder: with base.yaml and plan.json.
    """

    def __init__(self, folder: StudyFolder) -> None:
        plan = folder.read_plan()
        self.folder = folder
        self.arms = [Arm(**arm) for arm in plan["arms"]]
        self.seeds, self.tuning_seeds = list(plan["seeds"]), list(plan["tuning_seeds"])
        self.budget = Budget(**plan["budget"])
        self.score, self.goal, self.higher_is_better = plan["score"], plan["goal"], plan["higher_is_better"]
        self.trials = {arm.name: points(arm.spaces, plan["trials"]) for arm in self.arms}
        self._budgets = {
            arm.name: tuple(self.budget.overrides(load_config(folder.base, self._settings(arm, self._first(arm)))))
            for arm in self.arms
        }
        self._sign = 1.0 if self.higher_is_better else -1.0

    def todo(self) -> list[Job] | None:
        """The runs that are left, those that choose hyperparameters first; None when all have ended."""
        open_jobs = [job for arm in self.arms for job in self.trial_jobs(arm) if outcome(job) is None]
        chosen = [(arm, tuned) for arm in self.arms if (tuned := self.tuned(arm)) is not None]
        for arm, tuned in chosen:
            open_jobs += [job for job in self.result_jobs(arm, tuned) if outcome(job) is None]
        return open_jobs if open_jobs or len(chosen) < len(self.arms) else None

    def facts(self) -> dict[str, Any]:
        """What was asked and what was chosen, with the folder of every run of the result.

        Returns:
            goal, score, higher_is_better, budget, seeds, and for every arm set, tuned, trials (settings with their
            mean goals over the tuning seeds; None where one diverged) and runs (seed -> folder, relative).
        """
        arms = {}
        for arm in self.arms:
            tuned, scores = self.tuned(arm) or {}, self.trial_scores(arm) or []
            trials = [
                {**values, self.goal: self._sign * score if math.isfinite(score) else None}
                for values, score in zip(self.trials[arm.name], scores, strict=False)
            ]
            folders = [str(job.folder.relative_to(self.folder.path)) for job in self.result_jobs(arm, tuned)]
            arms[arm.name] = {
                "set": arm.set,
                "tuned": tuned,
                "trials": trials,
                "runs": dict(zip(map(str, self.seeds), folders, strict=True)),
            }
        goal = {"key": self.goal, "higher_is_better": self.higher_is_better}
        asked = {"goal": goal, "score": self.score, "budget": asdict(self.budget), "seeds": self.seeds}
        return {**asked, "tuning_seeds": self.tuning_seeds, "arms": arms}

    def prepare(self, job: Job) -> Job:
        """Nothing is left to choose."""
        return job

    def refuses(self, job: Job, mistake: InputError) -> bool:
        """An arm that cannot be trained is no arm: its user is to mend it."""
        return False

    def report(self, job: Job) -> str:
        """Where the comparison stands, and what the run came to."""
        done, total = self.progress()
        ended = outcome(job)
        value = math.nan if ended is None else ended.score(self.goal)
        seconds = "" if ended is None or ended.summary is None else f", {ended.summary.wall_s:.1f} s"
        return f"[{done}/{total}] {job.label}: {self.goal} {value:.4g}{seconds}"

    def progress(self) -> tuple[int, int]:
        """Runs that have ended, and runs in all."""
        jobs = [job for arm in self.arms for job in self.trial_jobs(arm)]
        for arm in self.arms:
            if (tuned := self.tuned(arm)) is not None:
                jobs += self.result_jobs(arm, tuned)
        num_trials = sum(len(self.trials[arm.name]) for arm in self.arms)
        total = num_trials * len(self.tuning_seeds) + len(self.arms) * len(self.seeds)
        return sum(outcome(job) is not None for job in jobs), total

    def tuned(self, arm: Arm) -> dict[str, Any] | None:
        """The setting that was best over the tuning seeds; None while a trial of the arm has not ended.

        A trial that diverged on any seed is worse than all that did not.
        """
        scores = self.trial_scores(arm)
        if scores is None:
            return None
        trials = self.trials[arm.name]
        return max(zip(scores, trials, strict=True), key=lambda pair: pair[0])[1] if trials else {}

    def trial_scores(self, arm: Arm) -> list[float] | None:
        """Of every trial the mean goal over the tuning seeds, larger is better; None while one has not ended."""
        scores = []
        for index in range(len(self.trials[arm.name])):
            ended = [outcome(job) for job in self._jobs_of_trial(arm, index)]
            values = [self._sign * found.score(self.goal) for found in ended if found is not None]
            if len(values) < len(ended):
                return None
            scores.append(-math.inf if any(map(math.isnan, values)) else fmean(values))
        return scores

    def trial_jobs(self, arm: Arm) -> Iterator[Job]:
        """The runs that choose the arm's hyperparameters."""
        for index in range(len(self.trials[arm.name])):
            yield from self._jobs_of_trial(arm, index)

    def result_jobs(self, arm: Arm, tuned: dict[str, Any]) -> Iterator[Job]:
        """The runs that the result consists of."""
        for seed in self.seeds:
            folder = self.folder.path / "runs" / arm.name / f"seed-{seed}"
            yield self._job(arm, tuned, seed, folder, f"{arm.name}, seed {seed}")

    def _jobs_of_trial(self, arm: Arm, index: int) -> Iterator[Job]:
        values = self.trials[arm.name][index]
        shown = ", ".join(f"{key}={value}" for key, value in values.items())
        for seed in self.tuning_seeds:
            folder = self.folder.path / "trials" / arm.name / f"{index}" / f"seed-{seed}"
            yield self._job(arm, values, seed, folder, f"tuning {arm.name}, {shown}, seed {seed}")

    def _job(self, arm: Arm, values: dict[str, Any], seed: int, folder: Path, label: str) -> Job:
        spent = self._budgets[arm.name]
        overrides = (*self._settings(arm, values), *spent, f"run.seed={seed}")
        steps = int(spent[0].partition("=")[2])
        return Job(folder, overrides, label, steps)

    def _first(self, arm: Arm) -> dict[str, Any]:
        return next(iter(self.trials[arm.name]), {})

    @staticmethod
    def _settings(arm: Arm, values: dict[str, Any]) -> list[str]:
        return as_overrides({**arm.set, **values})


def plan_comparison(
    folder: StudyFolder,
    config: Config,
    names: Sequence[str],
    own: dict[str, Arm],
    *,
    num_seeds: int,
    num_tuning_seeds: int,
    trials: int,
    budget: str,
    score: str | None = None,
) -> None:
    """Check everything that is asked and write it into `folder`; nothing is written before all of it holds.

    Args:
        folder: of the comparison; one that holds the same comparison is gone on with.
        config: that the arms are laid over; its seed is the first of the result's seeds.
        names, own: the arms, see `make_arms`; the others are compared with the first.
        num_seeds: of the result. With one there are no intervals and no tests.
        num_tuning_seeds: on which a setting is tried; none of them is a seed of the result.
        trials: settings that every arm tries of what it tunes.
        budget: see `parse_budget`.
        score: the score that is compared, such as heldout/r2; null: the first that the task shows, else its goal.

    Raises:
        InputError: something of it cannot be used.
    """
    for option, value in (("seeds", num_seeds), ("tuning-seeds", num_tuning_seeds), ("trials", trials)):
        if value < 1:
            raise InputError(f"--{option}: {value} is too few; give 1 or more")
    config, task = opened(config)
    if getattr(config.train, "refit", False):
        # A second fit would take in the entries by which settings are chosen here, and hide the first one's scores.
        config = with_values(config, {"train.refit": False})
    arms = make_arms(names, config, own)
    if any(arm.tune for arm in arms):
        check_validation(config)
    spent = parse_budget(budget, config)
    settings = {arm.name: points(arm.spaces, trials) or [{}] for arm in arms}
    goal, shown = _goal(config, task, score)
    plan = {
        "kind": KIND,
        "arms": [asdict(arm) for arm in arms],
        "seeds": [config.run.seed + i for i in range(num_seeds)],
        "tuning_seeds": [config.run.seed + _FIRST_TUNING_SEED + i for i in range(num_tuning_seeds)],
        "trials": trials,
        "budget": asdict(spent),
        "goal": goal.key,
        "higher_is_better": goal.higher_is_better,
        "score": shown,
    }
    _check_runnable(config, arms, settings, spent)
    folder.begin(to_yaml(config), plan)


def _check_runnable(config: Config, arms: Sequence[Arm], tried: dict[str, list[dict[str, Any]]], spent: Budget) -> None:
    """InputError where a setting of an arm cannot be run, or an arm equals another."""
    configs = check_arms(arms, config, {name: settings[0] for name, settings in tried.items()})
    for arm in arms:
        for values in tried[arm.name]:
            try:
                with_overrides(config, [*as_overrides({**arm.set, **values}), *spent.overrides(configs[arm.name])])
            except InputError as mistake:
                raise InputError(f"arm {arm.name}: {mistake}") from None


def _goal(config: Config, task: Task, score: str | None) -> tuple[Goal, str]:
    """The task's goal, and what is compared: `score`, else the first of the headline that there is, else the goal."""
    with parts.TASKS.chosen(config.task).naming():
        # Where every entry is observed, no held-out score is there to be compared.
        scores = evaluated(task, build_model(config, task))
    if score is not None and scores.get(score) is None:
        known = ", ".join(key for key, value in scores.items() if value is not None)
        raise InputError(f"--score: {score!r} is no score of this task; there are {known}")
    shown = [score] if score else [key for _, key in task.goal.headline if scores.get(key) is not None]
    return task.goal, (shown or [task.goal.key])[0]
