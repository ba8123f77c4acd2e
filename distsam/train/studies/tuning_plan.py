"""What is asked of a search: its space, its seeds, its rungs and its time, checked before anything is written."""

import math
from collections.abc import Collection
from dataclasses import asdict
from typing import Any

from distsam.errors import InputError
from distsam.runs.study import StudyFolder
from distsam.train import parts
from distsam.train.config import Config
from distsam.train.config_file import to_yaml, with_overrides
from distsam.train.studies.arms import METHOD_SPACES, as_overrides, has_rate
from distsam.train.studies.opened import check_validation, opened
from distsam.train.studies.space import Space, parse_space
from distsam.train.studies.tuning import KIND, REDUCTION

_NUM_RUNGS = 3
_RATES = "log:0.001:0.1"
_DECAYS = {"adamw": "log:0.001:10"}
_L2 = "log:0.000001:0.03"


def plan_tuning(
    folder: StudyFolder,
    config: Config,
    over: dict[str, str],
    *,
    minutes: float,
    num_seeds: int,
    trials: int | None = None,
    fixed: Collection[str] = (),
) -> None:
    """Check everything that is asked and write it into `folder`.

    Args:
        folder: of the search; one that holds the same search is gone on with.
        config: that settings are laid over; its seed is the first.
        over: dotted key -> space, see `parse_space`; the task's default space when empty.
        minutes: of wall time for all runs together.
        num_seeds: over which the best settings are averaged.
        trials: at most so many settings; None: as many as the time allows.
        fixed: dotted keys that the default space leaves as they are; of the network one is enough to leave it all.

    Raises:
        InputError: something of it cannot be used.
    """
    if not 0 < minutes < math.inf:
        raise InputError(f"--minutes: {minutes:g} is no time; give some minutes")
    if num_seeds < 1:
        raise InputError(f"--seeds: {num_seeds} is too few; give 1 or more")
    if trials is not None and trials < 1:
        raise InputError(f"--trials: {trials} is too few; give 1 or more")
    config, task = opened(config)
    spaces = {key: parse_space(key, text) for key, text in over.items()} or default_spaces(config, task, fixed)
    if not spaces:
        raise InputError("--over: every key of the default space is given; name those that are to be varied")
    _check_keys(config, spaces, task)
    goal = task.goal
    check_validation(config)
    plan = {
        "kind": KIND,
        "spaces": {key: asdict(space) for key, space in spaces.items()},
        "seeds": [config.run.seed + i for i in range(num_seeds)],
        "minutes": minutes,
        "trials": trials,
        "rungs": _rungs(config),
        "goal": goal.key,
        "higher_is_better": goal.higher_is_better,
        "score": goal.headline[0][1] if goal.headline else goal.key,
    }
    folder.begin(to_yaml(config), plan)


def default_spaces(config: Config, task: Any, fixed: Collection[str] = ()) -> dict[str, Space]:
    """What is varied when its user does not say: the task's own space, rate, decay, and what the method has."""
    search = parts.TASKS.chosen(config.task).search
    spaces = {} if search is None else search.spaces(config, task)
    if has_rate(config, config.optim.method):
        spaces["optim.lr"] = parse_space("optim.lr", _RATES)
    spaces["optim.weight_decay"] = parse_space("optim.weight_decay", _DECAYS.get(config.optim.base, _L2))
    for part in parts.METHODS.split(config.optim.method):
        if part.word in METHOD_SPACES:
            key, text = METHOD_SPACES[part.word]
            spaces[f"optim.{key}"] = parse_space(f"optim.{key}", text)
    # Size and format of the network are one choice.
    has_network = any(key.startswith("network.") for key in fixed)
    return {k: s for k, s in spaces.items() if k not in fixed and not (has_network and k.startswith("network."))}


def _rungs(config: Config) -> list[int]:
    """Steps at which settings are halved; the whole run alone where its course depends on its length."""
    steps = config.train.steps
    shapes = [getattr(config.optim, key, "constant") for key in ("schedule", "rho_schedule", "alpha_schedule")]
    if any(shape != "constant" for shape in shapes):
        return [steps]
    rungs = [steps // REDUCTION**k for k in range(_NUM_RUNGS - 1, -1, -1)]
    # A rung must end after the warm-up and with an evaluation that can choose weights.
    warm = (getattr(config.optim, f"{name}warmup_steps", 0) for name in ("", "rho_", "alpha_"))
    least = max(*(steps + 1 for steps in warm), config.train.eval_every or config.train.log_every)
    return [rung for rung in dict.fromkeys(rungs) if rung >= least or rung == steps]


def _check_keys(config: Config, spaces: dict[str, Space], task: Any) -> None:
    """InputError where a value of a space cannot be used."""
    for key in spaces:
        if key.partition(".")[0] in ("data", "run", "task") or key == "train.steps":
            raise InputError(f"--over: {key} changes what settings are judged by, not how good they are; leave it out")
    search = parts.TASKS.chosen(config.task).search
    # The ends of every range, and every value of every list once.
    count = max(2, *(len(space.choices) for space in spaces.values()))
    for i in range(count):
        values = {key: space.at((i + (i == count - 1) * 0.999) / count) for key, space in spaces.items()}
        settings = values if search is None else search.settings(values, config, task)
        try:
            with_overrides(config, as_overrides(settings))
        except InputError as mistake:
            raise InputError(f"--over: {mistake}") from None
