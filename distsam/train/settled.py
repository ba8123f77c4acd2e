"""Keys that say "auto": numbers from the run that is resumed, else from the data, before anything else is built."""

import json
from collections.abc import Mapping
from typing import Any

from distsam.environment import place
from distsam.errors import InputError
from distsam.runs.folder import RunFolder
from distsam.tasks.task import Task
from distsam.train import parts
from distsam.train.agreement import agreed, from_first_rank
from distsam.train.config import Config, validate
from distsam.train.config_file import read_yaml
from distsam.train.seams import AUTO


def auto_keys(config: Config) -> list[str]:
    """The dotted keys that are left to the data."""
    return [key for key in parts.TASKS.chosen(config.task).settles if _value(config.model_dump(), key) == AUTO]


def recalled(config: Config, folder: RunFolder) -> Config:
    """`config` with the numbers that the run in `folder` has for the keys that say auto.

    A run that goes on keeps its numbers, also where a later version of the rule would choose others.

    Collectives: one object broadcast over the world where there may be such numbers; every rank calls it.
    """
    if config.train.resume == "never" or not auto_keys(config):
        return config
    # As rank 0 finds them: a machine that does not see the folder would have none, and wait for the others.
    found = from_first_rank(lambda: _saved_values(config, folder))
    return with_values(config, found) if found else config


def _saved_values(config: Config, folder: RunFolder) -> dict[str, Any]:
    if not folder.is_run():
        return {}
    try:
        saved = read_yaml(folder.config)
    except InputError:  # said where the folder is looked at
        return {}
    found = {key: _value(saved, key) for key in auto_keys(config)}
    return {key: value for key, value in found.items() if value is not None}


def settled(config: Config, task: Task) -> Config:
    """`config` with a number for each key that says auto, the same on every rank.

    Collectives: one object broadcast over the world where there is such a key; every rank calls it.
    """
    if not auto_keys(config):
        return config
    # Of rank 0, because a rule may fit something, and machines may round otherwise.
    found = agreed(lambda: dict(parts.TASKS.chosen(config.task).settle(config, task)) if place().rank == 0 else {})
    values = from_first_rank(lambda: found)
    return with_values(config, values)


def describe_values(asked: Config, config: Config) -> str:
    """The keys that were left to the data, with what they became: "auto: network.bond_dim=8, ..."; "" for none."""
    content = config.model_dump()
    values = [f"{key}={json.dumps(_value(content, key))}" for key in auto_keys(asked)]
    return f"auto: {', '.join(values)}" if values else ""


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """A checked copy of `config` with other values; dotted key -> value. Without any, `config` itself."""
    if not values:
        return config
    content = config.model_dump()
    for key, value in values.items():
        section, _, name = key.partition(".")
        content[section][name] = value
    return validate(content).with_secrets(config.secrets)


def _value(content: Mapping[str, Any], key: str) -> Any:
    section, _, name = key.partition(".")
    found = content.get(section)
    return found.get(name) if isinstance(found, Mapping) else None
