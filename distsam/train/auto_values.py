"""Numbers in place of the word auto: from the model at its start, the same on every rank and in every part of a run."""

from collections.abc import Callable
from typing import Any

from torch import nn

from distsam.errors import InputError
from distsam.runs.checkpoints import published_checkpoints
from distsam.runs.folder import RunFolder
from distsam.train import parts
from distsam.train.agreement import from_first_rank
from distsam.train.checkpoint_reader import read_state
from distsam.train.config import Config
from distsam.train.seams import AUTO

# What a checkpoint's state calls them.
SAVED = "auto"


def auto_values(config: Config, model: nn.Module, folder: RunFolder | None = None) -> dict[str, float]:
    """Key of the optim section -> number, for each key that is auto and that the method uses.

    Args:
        config: of the run.
        model: placed, at its start.
        folder: of the run; where this goes on with a run, the numbers that it began with stay.

    Collectives: those of the rules, and one object broadcast, where a key is auto; every rank calls it.
    """
    rules = auto_rules(config)
    if not rules:
        return {}

    found = {key: rule(config.optim, model) for key, rule in rules.items()}
    settled = from_first_rank(lambda: _settled(folder) if folder is not None and _goes_on(folder, config) else {})
    return {key: settled.get(key, value) for key, value in found.items()}


def loads_all(folder: RunFolder, config: Config) -> bool:
    """True if nothing depends on the numbers of the start: the run goes on from a checkpoint, or cannot go on.

    A number in place of auto does, which an older checkpoint may lack.
    """
    return _goes_on(folder, config) and not auto_rules(config)


def _goes_on(folder: RunFolder, config: Config) -> bool:
    return config.train.resume == "auto" and bool(published_checkpoints(folder.checkpoints))


def auto_rules(config: Config) -> dict[str, Callable[[Any, Any], float]]:
    """Key of the optim section -> what gives its number, for each key that is auto and that the method uses."""
    return {
        key: rule
        for part in parts.METHODS.split(config.optim.method)
        for key, rule in part.keys.RULES.items()
        if getattr(config.optim, key) == AUTO
    }


def _settled(folder: RunFolder) -> dict[str, Any]:
    """What the run in `folder` began with. All its checkpoints hold the same, so any that can be read will do."""
    for path in reversed(published_checkpoints(folder.checkpoints)):
        try:
            saved = read_state(path).get(SAVED)
        except InputError:
            continue
        if isinstance(saved, dict):
            return {key: value for key, value in saved.items() if isinstance(value, float) and value >= 0}
    return {}
