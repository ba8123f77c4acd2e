"""Which layers of a model are meant: rules by name pattern or type, and putting others in their places."""

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from distsam.errors import ArgumentError

# A pattern as in fnmatch on names of modules, or "type:Linear" -> options; None leaves those layers as they are.
Rules = Mapping[str, Mapping[str, Any] | None]
Chosen = tuple[str, nn.Module, Mapping[str, Any]]
Kinds = tuple[type[nn.Module], ...]
_TYPE = "type:"


def chosen_layers(
    model: nn.Module, rules: Rules, kinds: Iterable[type[nn.Module]], keys: Sequence[str]
) -> list[Chosen]:
    """The layers that the rules choose, in the order of the model, each once.

    Args:
        model: what holds them.
        rules: pattern -> options; the first that fits a layer counts.
        kinds: which types of layers there are to choose from, exactly these.
        keys: the options that a rule may have.

    Raises:
        ArgumentError: a pattern that fits no layer (with names that are near), a rule that is none, or a model that is
            itself such a layer.
    """
    kinds = tuple(kinds)
    if not isinstance(rules, Mapping):
        raise ArgumentError("rules", f"are a {type(rules).__name__}; give a mapping of patterns to options")
    if type(model) in kinds:
        raise ArgumentError("model", f"is itself a {type(model).__name__}; give the module that holds it")
    modules = [(name, module) for name, module in model.named_modules() if name]
    layers = [(name, module) for name, module in modules if type(module) in kinds]
    for pattern, rule in rules.items():
        _check_rule(pattern, rule, keys)
        if not any(_fits(pattern, name, module) for name, module in layers):
            raise ArgumentError(f"rules[{pattern}]", _no_layer(pattern, modules, [name for name, _ in layers], kinds))
    chosen = []
    for name, module in layers:
        rule = next((rule for pattern, rule in rules.items() if _fits(pattern, name, module)), None)
        if rule is not None:
            chosen.append((name, module, rule))
    return chosen


def _check_rule(pattern: str, rule: Mapping[str, Any] | None, keys: Sequence[str]) -> None:
    if rule is None:
        return
    if not isinstance(rule, Mapping):
        raise ArgumentError(f"rules[{pattern}]", f"is {rule!r}; it must be a mapping with {', '.join(keys)}, or None")
    for key in rule:
        if key not in keys:
            raise ArgumentError(f"rules[{pattern}]", f"has {key!r}; use {', '.join(keys)}")


def _fits(pattern: str, name: str, module: nn.Module) -> bool:
    if pattern.startswith(_TYPE):
        return fnmatchcase(type(module).__name__, pattern.removeprefix(_TYPE))
    return fnmatchcase(name, pattern)


def _no_layer(pattern: str, modules: list[tuple[str, nn.Module]], layers: list[str], kinds: Kinds) -> str:
    others = [type(module).__name__ for name, module in modules if _fits(pattern, name, module)]
    if others:
        known = ", ".join(kind.__name__ for kind in kinds)
        return f"fits only {', '.join(dict.fromkeys(others))}; it must fit one of {known}"
    near = get_close_matches(pattern, layers, n=5, cutoff=0.3) or layers[:5]
    return f"fits no layer; there are {', '.join(near) or 'none that can be tensorized'}"


def replace_modules(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> None:
    """Puts each replacement wherever its module stands in `model`."""
    for parent in list(model.modules()):
        # named_children would leave out the second place of a module that stands in two.
        for attribute, child in list(parent._modules.items()):
            if child is not None and child in replacements:
                setattr(parent, attribute, replacements[child])
