"""Where to look next, given what has been tried: the one importer of optuna.

Optuna's tree-structured Parzen estimator, asked anew from the trials that lie in the study's folder: it keeps no store
of its own, so that there is none which a kill could tear apart from the runs.
"""

import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from distsam.train.studies.space import Space, rounded

# So many trials fill the space evenly before the estimator begins to prefer parts of it.
_NUM_STARTUP = 8


def suggest(spaces: Mapping[str, Space], tried: Sequence[tuple[Mapping[str, Any], float]], seed: int) -> dict[str, Any]:
    """A setting that looks promising; the same for the same arguments.

    Args:
        spaces: of the keys.
        tried: settings with their scores, larger is better; -inf for one that diverged.
        seed: another one gives another setting: the number of the trial.

    Source: Bergstra et al., "Algorithms for hyper-parameter optimization", NIPS 2011; optuna.samplers.TPESampler.
    """
    optuna = _library()
    study = _study(optuna, spaces, tried, seed)
    trial = study.ask({key: _distribution(optuna, space) for key, space in spaces.items()})
    return {key: _value(spaces[key], trial.params[key]) for key in spaces}


def importances(spaces: Mapping[str, Space], tried: Sequence[tuple[Mapping[str, Any], float]]) -> dict[str, float]:
    """How much each key mattered among the better settings: shares that sum to 1; empty where too few were tried.

    Source: Watanabe et al., "PED-ANOVA", IJCAI 2023; optuna.importance.PedAnovaImportanceEvaluator.
    """
    optuna = _library()
    if len(tried) < 2 * _NUM_STARTUP or len(spaces) < 2:
        return {}
    study = _study(optuna, spaces, tried, seed=0)
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the method is marked as new
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {str(key): float(share) for key, share in found.items()}


def _library() -> Any:
    import optuna

    optuna.logging.set_verbosity(logging.ERROR)
    return optuna


def _study(
    optuna: Any, spaces: Mapping[str, Space], tried: Sequence[tuple[Mapping[str, Any], float]], seed: int
) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that multivariate is marked as new, for six years
        sampler = optuna.samplers.TPESampler(n_startup_trials=_NUM_STARTUP, multivariate=True, seed=seed)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    distributions = {key: _distribution(optuna, space) for key, space in spaces.items()}
    scores = [score for _, score in tried if score > float("-inf")]
    # As a number, so that what diverges is avoided: below all that did not.
    worst = min(scores, default=0.0) - 1.0
    for values, score in tried:
        params = {key: _param(spaces[key], values[key]) for key in spaces}
        value = max(score, worst)
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=value))
    return study


def _distribution(optuna: Any, space: Space) -> Any:
    kinds = optuna.distributions
    if space.kind == "choice":
        # By position: a value may be a list, which the library does not take.
        return kinds.CategoricalDistribution(list(range(len(space.choices))))
    if space.kind in ("int", "logint"):
        return kinds.IntDistribution(int(space.low), int(space.high), log=space.kind == "logint")
    return kinds.FloatDistribution(space.low, space.high, log=space.kind == "log")


def _param(space: Space, value: Any) -> Any:
    return space.choices.index(value) if space.kind == "choice" else value


def _value(space: Space, param: Any) -> Any:
    if space.kind == "choice":
        return space.choices[param]
    if isinstance(param, int):
        return param
    # Rounding must not leave the range.
    return min(space.high, max(space.low, rounded(param)))
