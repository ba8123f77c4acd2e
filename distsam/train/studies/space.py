"""The values among which a key is tuned, and points in them."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp, floor, isfinite, log
from typing import Any

from distsam.errors import InputError

_FORM = "write log:LOW:HIGH, linear:LOW:HIGH, int:LOW:HIGH, logint:LOW:HIGH or VALUE,VALUE,..."
_KINDS = ("log", "linear", "int", "logint")
_DIGITS = 3


@dataclass(frozen=True)
class Space:
    """A range of numbers, or a list of values.

    Args:
        kind: log, linear, int or logint for a range from `low` to `high`, both included; choice for a list.
        choices: of a list.
    """

    kind: str
    low: float = 0.0
    high: float = 0.0
    choices: tuple[Any, ...] = ()

    def at(self, share: float) -> Any:
        """The value at `share`, in [0, 1), of the way from the low to the high end; three significant digits."""
        if self.kind == "choice":
            return self.choices[floor(share * len(self.choices))]
        if self.kind == "linear":
            return rounded(self.low + share * (self.high - self.low))
        if self.kind == "int":
            return int(self.low) + floor(share * (self.high - self.low + 1))
        if self.kind == "logint":
            # From half below the low end to half above the high one, so that each whole number has its part.
            return min(int(self.high), max(int(self.low), round(_between(self.low - 0.5, self.high + 0.5, share))))
        return rounded(_between(self.low, self.high, share))

    def nearest(self, value: Any) -> Any:
        """The value of the space that is nearest to this one; the middle for a word such as auto."""
        if self.kind == "choice":
            return value if value in self.choices else self.choices[0]
        if not isinstance(value, int | float):
            return self.at(0.5)
        kept = min(self.high, max(self.low, value))
        return int(kept) if self.kind.endswith("int") else kept


def parse_space(key: str, text: str) -> Space:
    """The space that `text` describes.

    Raises:
        InputError: it describes none; the message names `key`.
    """
    kind, colon, rest = text.partition(":")
    if not colon:
        return _list(key, text)
    if kind not in _KINDS:
        raise InputError(f"{key}: {text!r} begins with {kind!r}; {_FORM}")
    try:
        low, high = (float(bound) for bound in rest.split(":"))
    except ValueError:
        raise InputError(f"{key}: {text!r} is no range; {_FORM}") from None
    if not isfinite(low) or not isfinite(high):
        raise InputError(f"{key}: {text!r} has an end that is no finite number; {_FORM}")
    if not low < high:
        raise InputError(f"{key}: {text!r} goes from {low:g} to {high:g}; the low end comes first")
    if kind.startswith("log") and low <= 0:
        raise InputError(f"{key}: {text!r} begins at {low:g}; a logarithmic range begins above 0")
    if kind.endswith("int") and (low != int(low) or high != int(high)):
        raise InputError(f"{key}: {text!r} has ends that are no whole numbers; {_FORM}")
    return Space(kind, low, high)


def points(spaces: Mapping[str, Space], count: int) -> list[dict[str, Any]]:
    """`count` settings of the keys that fill their spaces evenly, the same at every call.

    One key: equal steps over its space. Several: the first points of a Sobol sequence, of which every key sees
    different values in every trial.
    """
    if not spaces:
        return []
    if len(spaces) == 1:
        ((key, space),) = spaces.items()
        return _distinct([{key: space.at((i + 0.5) / count)} for i in range(count)])
    from torch.quasirandom import SobolEngine

    # Its first point is 0 in every coordinate: the low ends of all spaces, of which nobody expects the best.
    shares = SobolEngine(len(spaces)).draw(count + 1)[1:].tolist()
    return _distinct([{k: s.at(u) for (k, s), u in zip(spaces.items(), row, strict=True)} for row in shares])


def _list(key: str, text: str) -> Space:
    values = tuple(_value(part.strip()) for part in text.split(","))
    if "" in values or len(set(map(str, values))) < len(values):
        raise InputError(f"{key}: {text!r} is no list of different values; {_FORM}")
    return Space("choice", choices=values)


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False, "null": None}.get(text, text)


def _distinct(settings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without repetitions: a trial that equals another says nothing."""
    return list({tuple(setting.values()): setting for setting in settings}.values())


def _between(low: float, high: float, share: float) -> float:
    return exp(log(low) + share * (log(high) - log(low)))


def rounded(value: float) -> float:
    """Three significant digits: a learning rate of 0.00316 is as good as one of 0.0031622."""
    return float(f"{value:.{_DIGITS}g}")
