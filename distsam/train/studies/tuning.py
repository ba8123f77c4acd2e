"""A search for good settings within so many minutes: asynchronous successive halving over settings and seeds.

Every setting is first trained for a ninth of the steps on one seed; the best third of those goes on, from its
checkpoint, to a third of the steps and a second seed, the best third of those to all steps and all seeds. Workers never
wait for a rung to be full: who is free takes the best setting that has earned more, else a new one.

Source: Li et al., "A system for massively parallel hyperparameter tuning", MLSys 2020 (ASHA); here a setting that goes
on keeps its weights, and adds seeds.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from distsam.errors import InputError
from distsam.runs.atomic import write_atomically
from distsam.runs.study import StudyFolder
from distsam.train import parts
from distsam.train.config_file import load_config, to_yaml
from distsam.train.studies.arms import as_overrides
from distsam.train.studies.clock import StudyClock
from distsam.train.studies.jobs import Job, outcome, refuse, score_until, trained_s
from distsam.train.studies.opened import opened
from distsam.train.studies.space import Space

KIND = "search"
REDUCTION = 3
_MAX_REFUSED = 3


@dataclass(frozen=True)
class Trial:
    """A setting, and how far it may go.

    Args:
        index: its number; 0 is the config as it is.
        values: key of the space -> value; empty for the config as it is.
        settings: dotted key -> value, as the config takes them.
        rung: 0, 1, ..: the last one it may do.
    """

    index: int
    values: dict[str, Any]
    settings: dict[str, Any]
    rung: int = 0


class Tuning:
    """A search in its folder.

    Args:
        folder: with base.yaml and plan.json.
    """

    def __init__(self, folder: StudyFolder) -> None:
        plan = folder.read_plan()
        self.folder = folder
        self.spaces = {key: _space(content) for key, content in plan["spaces"].items()}
        self.seeds, self.max_trials = list(plan["seeds"]), plan["trials"]
        self.goal, self.score, self.higher_is_better = plan["goal"], plan["score"], plan["higher_is_better"]
        self.rungs: list[int] = plan["rungs"]
        self.limit_s = 60.0 * plan["minutes"]
        self.clock = StudyClock(folder.path / "clock")
        self._config = load_config(folder.base)
        self._task: Any = None
        # A second fit says nothing of which setting is better.
        self._no_refit = ("train.refit=false",) if getattr(self._config.train, "refit", False) else ()
        self._sign = 1.0 if self.higher_is_better else -1.0

    def todo(self) -> list[Job] | None:
        """What was begun, then the setting that has earned more, then a new one; None when time or trials are over."""
        self.clock.start()
        trials = self.trials()
        begun = [job for trial in trials for job in self._jobs(trial) if outcome(job) is None]
        if self.clock.spent_s >= self.limit_s:
            return None
        candidates = [self._job(trial, trial.rung, self.seeds[0]) for trial in self._promotable(trials)[:1]]
        if self.max_trials is None or len(trials) < self.max_trials:
            candidates.append(self._new_job(len(trials)))
        return begun + candidates or None

    def prepare(self, job: Job) -> Job:
        """Choose what a new setting is; write down that a setting goes on; leave the run the time that is left."""
        index = int(job.folder.parent.name)
        known = {trial.index: trial for trial in self.trials()}
        trial = known.get(index) or self._sampled(index)
        rung = self.rungs.index(job.steps)
        if index not in known or rung > trial.rung:
            trial = replace(trial, rung=rung)
            job.folder.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._file(index), json.dumps(asdict(trial)) + "\n")
        done_s = trained_s(job)
        left_s = max(1.0, self.limit_s - self.clock.spent_s)
        made = self._job(trial, rung, int(job.folder.name.partition("-")[2]))
        return replace(made, overrides=(*made.overrides, f"train.max_seconds={done_s + left_s:.1f}"))

    def report(self, job: Job) -> str:
        """Where the search stands, and what the run came to."""
        ended = outcome(job)
        value = math.nan if ended is None else ended.score(self.goal)
        spent = self.clock.spent_s / 60
        return f"[{spent:.1f}/{self.limit_s / 60:g} min] {job.label}: {self.goal} {value:.4g}"

    def refuses(self, job: Job, mistake: InputError) -> bool:
        """Whether the search goes on without a setting that cannot be trained: one too large for the memory, perhaps.

        Not where it is the config as it is, or the last ones could not be trained either: then it is no matter of the
        setting.
        """
        index = int(job.folder.parent.name)
        before = [self.result_at(trial, 0) for trial in self.trials()[max(0, index - _MAX_REFUSED) : index]]
        if index == 0 or (len(before) == _MAX_REFUSED and all(score == -math.inf for score in before)):
            return False
        refuse(job, str(mistake))
        return True

    def trials(self) -> list[Trial]:
        """All settings that were begun, in order."""
        found: list[Trial] = []
        while (content := _read(self._file(len(found)))) is not None:
            found.append(Trial(**content))
        return found

    def result_at(self, trial: Trial, rung: int) -> float | None:
        """Mean goal at the end of a rung over its seeds, larger is better; None while a run is missing."""
        values = []
        for job in self._jobs_at(trial, rung):
            ended = outcome(job)
            if ended is None:
                return None
            # Not what the run has come to since: settings are compared after equal steps.
            value = math.nan if ended.summary is None else score_until(job, self.goal, self.higher_is_better)
            values.append(self._sign * value)
        return -math.inf if any(map(math.isnan, values)) else fmean(values)

    def ranked(self) -> list[tuple[Trial, int, float]]:
        """(setting, rung, score) of all that have ended one, those that went furthest first, then by their score.

        Last come those that diverged.
        """
        found: list[tuple[Trial, int, float]] = []
        for trial in self.trials():
            ended = [(rung, self.result_at(trial, rung)) for rung in range(trial.rung, -1, -1)]
            known = [(rung, score) for rung, score in ended if score is not None]
            if known:
                found.append((trial, *known[0]))
        return sorted(found, key=lambda entry: (entry[2] > -math.inf, entry[1], entry[2]), reverse=True)

    def facts(self) -> dict[str, Any]:
        """What was tried and what was best: content of tune.json.

        Raises:
            InputError: no run has ended within the time.
        """
        from distsam.train.studies.sampler import importances

        ranked = self.ranked()
        if not ranked:
            raise InputError(f"--minutes: {self.limit_s / 60:g} were too few for a single run; give more")
        best, rung, score = ranked[0]
        if score == -math.inf:
            raise InputError(f"{self.folder.path}: all {len(ranked)} settings diverged; give other ranges by --over")
        return {
            "goal": {"key": self.goal, "higher_is_better": self.higher_is_better},
            "score": self.score,
            "seeds": self.seeds,
            "steps": self.rungs,
            "minutes": self.clock.spent_s / 60,
            "spaces": {key: asdict(space) for key, space in self.spaces.items()},
            "trials": [
                {**asdict(trial), "rung": at, "goal": self._sign * score if math.isfinite(score) else None}
                for trial, at, score in ranked
            ],
            "best": {
                **asdict(best),
                "rung": rung,
                "runs": [str(job.folder.relative_to(self.folder.path)) for job in self._jobs_at(best, rung)],
            },
            "importances": importances(self.spaces, self._tried()),
        }

    def best_config(self) -> str:
        """The best setting as the text of a config, ready to train."""
        best = self.ranked()[0][0]
        overrides = [*as_overrides(best.settings), f"train.steps={self.rungs[-1]}"]
        overrides.append(f"run.dir={json.dumps(str(self.folder.path / 'best'))}")
        return to_yaml(load_config(self.folder.base, overrides))

    def _promotable(self, trials: Sequence[Trial]) -> list[Trial]:
        """Settings that may go on, as they will be: of the best third of a rung those that are not beyond it."""
        for rung in range(len(self.rungs) - 2, -1, -1):
            scored = [(score, trial) for trial in trials if (score := self.result_at(trial, rung)) is not None]
            scored.sort(key=lambda pair: (-pair[0], pair[1].index))
            best = [t for score, t in scored[: len(scored) // REDUCTION] if t.rung == rung and score > -math.inf]
            if best:
                return [replace(trial, rung=rung + 1) for trial in best]
        return []

    def _sampled(self, index: int) -> Trial:
        if index == 0:
            return Trial(0, {}, {})
        from distsam.train.studies.sampler import suggest

        values = self._first(index - 1) or suggest(self.spaces, self._tried(), seed=index)
        return Trial(index, values, self._settings(values))

    def _first(self, position: int) -> dict[str, Any] | None:
        """One of the settings that the task would try first, where the search varies no other keys than it names."""
        search = parts.TASKS.chosen(self._config.task).search
        first = [] if search is None else search.first(self._config, self._opened())
        if position >= len(first) or not first[position].keys() <= self.spaces.keys():
            return None
        content = self._config.model_dump()
        for key in self.spaces.keys() - first[position].keys():
            section, _, name = key.partition(".")
            first[position][key] = self.spaces[key].nearest(content[section][name])
        return {key: first[position][key] for key in self.spaces}

    def _opened(self) -> Any:
        """The task; its data are read once."""
        if self._task is None:
            _, self._task = opened(self._config)
        return self._task

    def _tried(self) -> list[tuple[dict[str, Any], float]]:
        """Settings with their scores, in order. A setting that did not go on is judged by where it stopped."""
        ranked = sorted(self.ranked(), key=lambda entry: entry[0].index)
        return [(trial.values, score) for trial, _, score in ranked if trial.values]

    def _settings(self, values: dict[str, Any]) -> dict[str, Any]:
        search = parts.TASKS.chosen(self._config.task).search
        if search is None:
            return values
        return search.settings(values, self._config, self._opened())

    def _jobs(self, trial: Trial) -> Iterator[Job]:
        """The runs of the rung that the setting is at."""
        yield from self._jobs_at(trial, trial.rung)

    def _jobs_at(self, trial: Trial, rung: int) -> Iterator[Job]:
        for seed in self._seeds_of(rung):
            yield self._job(trial, rung, seed)

    def _seeds_of(self, rung: int) -> list[int]:
        is_last = rung == len(self.rungs) - 1
        return self.seeds if is_last else self.seeds[: rung + 1]

    def _job(self, trial: Trial, rung: int, seed: int) -> Job:
        steps = self.rungs[rung]
        shown = ", ".join(f"{key}={value}" for key, value in trial.settings.items() if value is not None)
        overrides = (*as_overrides(trial.settings), f"train.steps={steps}", f"run.seed={seed}", *self._no_refit)
        folder = self._file(trial.index).parent / f"seed-{seed}"
        label = f"{trial.index}: {shown or 'the config as it is'}, {steps} steps, seed {seed}"
        return Job(folder, overrides, label, steps)

    def _new_job(self, index: int) -> Job:
        return self._job(Trial(index, {}, {}), 0, self.seeds[0])

    def _file(self, index: int) -> Path:
        return self.folder.path / "trials" / f"{index}" / "trial.json"


def _space(content: dict[str, Any]) -> Space:
    return Space(**{**content, "choices": tuple(content["choices"])})


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
