"""From a YAML file and `key=value` overrides to a checked Config, and back to YAML."""

import json
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from distsam.errors import InputError
from distsam.train.config import Config, validate
from distsam.train.secrets import secrets_of, without_secrets

_LARGEST_BYTES = 2**20


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The config of `path` with `overrides` (`section.key=value`, YAML values, the last one wins) applied.

    Raises:
        InputError: no such file, no YAML, unknown key, wrong type or range, keys that do not fit together.
    """
    given = merged = _read(Path(path))
    for override in overrides:
        merged = _merge(merged, override)
    try:
        config = _checked(merged, Path(path))
    except InputError as mistake:
        if str(mistake) == _mistake_in(given, Path(path)):
            raise InputError(f"{path}: {mistake}") from None
        raise
    return _with_run_folder(config, Path(path))


def with_overrides(config: Config, overrides: Sequence[str]) -> Config:
    """`config` with `overrides` applied, checked as `load_config` does.

    Raises:
        InputError: unknown key, wrong type or range, keys that do not fit together.
    """
    merged = OmegaConf.create(_escaped(config.model_dump()))
    for override in overrides:
        merged = _merge(merged, override)
    return validate(_resolved(merged, Path("the config"))).with_secrets(config.secrets)


def read_yaml(path: Path) -> dict[str, Any]:
    """The plain content of a config file, interpolations resolved but those of secrets, nothing checked."""
    config = _read(path)
    resolved = _resolved(config, path)
    return dict(without_secrets(resolved, secrets_of(_written(config), resolved)))


def to_yaml(config: Config) -> str:
    """The resolved config, every key written out; read again it gives the same values.

    A secret that came from the environment is written as it was given, "${oc.env:API_TOKEN}".
    """
    escaped = _escaped(config.model_dump())
    return OmegaConf.to_yaml(OmegaConf.create(without_secrets(escaped, config.secrets)))


def _escaped(value: Any) -> Any:
    """Texts such that OmegaConf takes a "${" in them as it stands."""
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    # Backslashes before it would count as escapes of their own.
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def _checked(config: DictConfig, path: Path) -> Config:
    raw = _resolved(config, path)
    return validate(raw).with_secrets(secrets_of(_written(config), raw))


def _mistake_in(config: DictConfig, path: Path) -> str | None:
    """What is wrong with the file itself, without overrides."""
    try:
        _checked(config, path)
    except InputError as mistake:
        return str(mistake)
    return None


def _with_run_folder(config: Config, path: Path) -> Config:
    if config.run.dir:
        return config
    return config.model_copy(update={"run": config.run.model_copy(update={"dir": f"runs/{path.stem}"})})


def _read(path: Path) -> DictConfig:
    try:
        found = path.stat()
        if stat.S_ISDIR(found.st_mode):
            raise InputError(f"{path}: is a folder; give a YAML file")
        # A pipe would be waited for; what is larger is data.
        if not stat.S_ISREG(found.st_mode):
            raise InputError(f"{path}: is no regular file; give a YAML file")
        if found.st_size > _LARGEST_BYTES:
            raise InputError(f"{path}: has {found.st_size} bytes; a config has at most {_LARGEST_BYTES}")
        loaded = OmegaConf.load(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such config file") from None
    except RecursionError:
        raise InputError(f"{path}: cannot be read as YAML: it is nested too deep") from None
    except InputError:
        raise
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise InputError(f"{path}: cannot be read as YAML: {_one_line(error)}") from None
    if not isinstance(loaded, DictConfig):
        raise InputError(f"{path}: must be a mapping of sections (data, network, train, ...), not a list")
    return loaded


def _merge(config: DictConfig, override: str) -> DictConfig:
    key, equals, value = override.partition("=")
    if not equals or not key.strip():
        raise InputError(f"{override}: is no override; write section.key=value, such as optim.lr=1e-3")
    # On a command line "#" begins no comment: it is part of a name, such as a file's.
    if re.search(r"\s#", value) and value[0] not in "'\"[{":
        override = f"{key}={json.dumps(value)}"
    try:
        given = OmegaConf.from_dotlist([override])
        # A mapping replaces the file's, as a list does: what would be left of that one was not asked for.
        merged = OmegaConf.merge(config, *_cleared(given, key), given)
    except RecursionError:
        raise InputError(f"{key}: {value!r} cannot be read: it is nested too deep") from None
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, TypeError) as error:
        raise InputError(f"{key}: {value!r} cannot be read: {_one_line(error)}") from None
    assert isinstance(merged, DictConfig)
    return merged


def _cleared(given: DictConfig, key: str) -> list[dict[str, Any]]:
    """What sets section.key to null before a mapping is given to it; nothing for another value."""
    section, _, name = key.partition(".")
    content: Any = OmegaConf.to_container(given, resolve=False)
    of_section = content.get(section) if isinstance(content, dict) else None
    is_mapping = isinstance(of_section, dict) and isinstance(of_section.get(name), dict)
    return [{section: {name: None}}] if is_mapping else []


def _resolved(config: DictConfig, path: Path) -> dict[str, Any]:
    try:
        raw = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except RecursionError:
        raise InputError(f"{path}: cannot be resolved: it is nested too deep") from None
    except (OmegaConfBaseException, ValueError) as error:
        key = getattr(error, "full_key", None) or path
        raise InputError(f"{key}: cannot be resolved: {_one_line(error)}") from None
    return {str(key): value for key, value in raw.items()}  # type: ignore[union-attr]


def _written(config: DictConfig) -> Any:
    return OmegaConf.to_container(config, resolve=False)


def _one_line(error: Exception) -> str:
    return " ".join(line.strip() for line in str(error).splitlines()[:4] if line.strip())
