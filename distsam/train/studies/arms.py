"""The arms of a comparison: named sets of overrides, and what each of them tunes."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from distsam.errors import InputError
from distsam.train import parts
from distsam.train.config import Config
from distsam.train.config_file import read_yaml, with_overrides
from distsam.train.studies.space import Space, parse_space

# What each method brings to tune. Ranges of the papers and of what was found here; three decades or more.
METHOD_SPACES = {
    "sam": ("rho", "log:0.001:1"),
    "das": ("alpha", "log:0.001:10"),
    "nbar": ("alpha", "log:0.01:100"),
    "obar": ("alpha", "log:0.01:100"),
}
_TUNES = {
    **METHOD_SPACES,
    "wd": ("weight_decay", "log:0.001:10"),
    "l2": ("weight_decay", "log:0.00001:0.1"),
}
_DECAYS = ("wd", "l2")
_SUM_DECAY = "log:0.001:100"
# From a fifth of the config's learning rate to five times it.
_RATE_RANGE = 5
_PLAIN = "base"
_AS_IT_IS = "config"


@dataclass(frozen=True)
class Arm:
    """One way of training.

    Args:
        name: for people, and of its folder.
        set: dotted key -> value, laid over the config.
        tune: dotted key -> the space of a key that is chosen on the validation entries.
    """

    name: str
    set: dict[str, Any] = field(default_factory=dict)
    tune: dict[str, str] = field(default_factory=dict)

    @property
    def spaces(self) -> dict[str, Space]:
        """The spaces of `tune`, parsed."""
        return {key: parse_space(f"arm {self.name}: {key}", text) for key, text in self.tune.items()}


def as_overrides(values: dict[str, Any]) -> list[str]:
    """`section.key=value`, in YAML, as `load_config` takes them."""
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def make_arms(names: Sequence[str], config: Config, own: dict[str, Arm]) -> list[Arm]:
    """The arms of these names.

    Args:
        names: of arms in `own`; `config`, the config as it is; `base`; or a sum of sam, das, nbar, obar and one of wd
            (decoupled weight decay) and l2 (decay in the gradient), such as sam+wd.
        config: that they are laid over.
        own: arms that the user has written, by name.

    Raises:
        InputError: an unknown name, a name that is there twice, or a method that the config's optimizer cannot have.
    """
    if len(names) < 2:
        raise InputError(f"--arms: {','.join(names)!r} is no comparison; give two arms or more, such as base,sam")
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"--arms: {name} is there twice; give every arm once")
    return [own[name] if name in own else _shipped(name, config, own) for name in names]


def read_arms(path: Path) -> dict[str, Arm]:
    """The arms that a YAML file defines: name -> {set: {section.key: value}, tune: {section.key: space}}.

    Raises:
        InputError: it is no such file.
    """
    arms = {}
    for name, content in read_yaml(path).items():
        if not isinstance(content, dict) or content.keys() - {"set", "tune"}:
            raise InputError(f"{path}: {name}: {content!r} is no arm; write {{set: {{section.key: value}}, tune: ...}}")
        for part in ("set", "tune"):
            if not isinstance(content.get(part) or {}, dict):
                raise InputError(f"{path}: {name}: {part}: {content[part]!r} must map section.key to a value")
        if not name.replace("+", "").replace("-", "").replace("_", "").isalnum():
            raise InputError(f"{path}: {name!r} cannot be the name of an arm; use letters, digits, +, - and _")
        tune = {key: str(space) for key, space in (content.get("tune") or {}).items()}
        arms[name] = Arm(name, dict(content.get("set") or {}), tune)
        _ = arms[name].spaces  # a space that cannot be read is said now
    return arms


def check_arms(arms: Sequence[Arm], base: Config, firsts: dict[str, dict[str, Any]]) -> dict[str, Config]:
    """Every arm's config, with the first setting of what it tunes.

    Raises:
        InputError: one that cannot be run, or that equals another.
    """
    configs: dict[str, Config] = {}
    seen: dict[str, str] = {}
    for arm in arms:
        try:
            config = with_overrides(base, as_overrides({**arm.set, **firsts[arm.name]}))
        except InputError as mistake:
            raise InputError(f"arm {arm.name}: {mistake}") from None
        content = {"config": config.model_dump(), "tune": arm.tune}
        for key in arm.tune:
            section, _, name = key.partition(".")
            del content["config"][section][name]
        twin = seen.setdefault(json.dumps(content, sort_keys=True), arm.name)
        if twin != arm.name:
            raise InputError(f"--arms: {arm.name} equals {twin}: both train in the same way; leave one of them out")
        configs[arm.name] = config
    return configs


def gradients_per_step(config: Config) -> int:
    """2 where an ascent takes a second gradient, else 1."""
    return 2 if any(part.word in parts.ASCENTS.parts for part in parts.METHODS.split(config.optim.method)) else 1


def has_rate(config: Config, method: str) -> bool:
    """True where with this optim.method a learning rate moves something: the base's step, or a rescaling before it."""
    is_rescaled = any(part.word in parts.RESCALES.parts for part in parts.METHODS.split(method))
    return is_rescaled or not parts.BASES.chosen(config.optim).solves


def _shipped(name: str, config: Config, own: dict[str, Arm]) -> Arm:
    if name == _AS_IT_IS:
        return Arm(name)
    words = name.split("+")
    known = {*parts.METHODS.parts, *_DECAYS}
    if name != _PLAIN and (not set(words) <= known or len(set(words)) < len(words)):
        choices = [_PLAIN, _AS_IT_IS, *sorted(known), *own]
        near = get_close_matches(name, choices, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(f"--arms: {name!r} is no arm; {hint}there are {', '.join(choices)}, and sums such as sam+wd")
    methods = [word for word in words if word in parts.METHODS.parts]
    decays = [word for word in words if word in _DECAYS]
    if len(decays) > 1:
        raise InputError(f"--arms: {name!r} has two kinds of weight decay; take one of {', '.join(_DECAYS)}")
    if decays == ["wd"] and config.optim.base not in ("adam", "adamw"):
        raise InputError(f"--arms: {name!r}: optim.base={config.optim.base} has no decoupled decay; take l2 instead")
    return Arm(name, dict(_settings(methods, decays, config)), dict(_tuned(words, config)))


def _settings(methods: list[str], decays: list[str], config: Config) -> Iterator[tuple[str, Any]]:
    yield "optim.method", "+".join(methods) or _PLAIN
    if config.optim.base in ("adam", "adamw"):
        yield "optim.base", "adamw" if decays == ["wd"] else "adam"
    if not has_rate(config, "+".join(methods) or _PLAIN):
        yield "optim.lr", type(config.optim).model_fields["lr"].default
    yield "optim.weight_decay", 0.0
    # What the config gave to a method that this arm has not, would be refused there.
    used = {key for word in methods for key in parts.METHODS.parts[word].keys.model_fields}
    for part in parts.METHODS.parts.values():
        for key in part.keys.model_fields:
            if key not in used and key not in part.keys.SWEPT and hasattr(config.optim, key):
                yield f"optim.{key}", None


def _tuned(words: list[str], config: Config) -> Iterator[tuple[str, str]]:
    """The learning rate, in every arm that has one, so that no arm wins by a better one; and what each word brings."""
    methods = [word for word in words if word in parts.METHODS.parts]
    if has_rate(config, "+".join(methods) or _PLAIN):
        rate = float(config.optim.lr)  # never auto: the study has put a number in its place
        yield "optim.lr", f"log:{rate / _RATE_RANGE:.3g}:{rate * _RATE_RANGE:.3g}"
    for word in words:
        if word in _TUNES:
            key, space = _TUNES[word]
            # Of a sum of squares the decay is as many times larger as there are entries.
            is_sum = word == "l2" and getattr(config.train, "loss", "mean") == "sum"
            yield f"optim.{key}", _SUM_DECAY if is_sum else space
