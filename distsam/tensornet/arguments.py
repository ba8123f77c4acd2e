"""What a user may give for a size, a number or a list of them: Python's, numpy's and torch's; else an ArgumentError."""

from collections.abc import Sequence
from math import isfinite, nan
from numbers import Real
from operator import index as as_int
from typing import Any

from distsam.errors import ArgumentError


def checked_size(value: Any, argument: str) -> int:
    """The integer that `value` is, at least 1.

    Raises:
        ArgumentError: it is no integer (booleans count as none) or below 1; it names `argument`.
    """
    try:
        size = None if isinstance(value, bool) else as_int(value)
    except TypeError:
        size = None
    if size is None or size < 1:
        raise ArgumentError(argument, f"is {value!r}; it must be an integer of at least 1")
    return size


def checked_positive(value: Any, argument: str) -> float:
    """The number that `value` is, positive and finite.

    Raises:
        ArgumentError: it is not; it names `argument`.
    """
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else nan
    if not (isfinite(number) and number > 0):
        raise ArgumentError(argument, f"is {value!r}; it must be a positive finite number")
    return number


def checked_list(value: Any, argument: str) -> list[Any]:
    """The elements of a sequence, or of a 1-D array or tensor.

    Raises:
        ArgumentError: it is none; it names `argument`.
    """
    if not is_list(value):
        raise ArgumentError(argument, f"is {value!r}; it must be a list")
    return list(value.tolist() if hasattr(value, "tolist") else value)


def is_list(value: Any) -> bool:
    """True for a sequence other than a text, and for a 1-D array or tensor."""
    return getattr(value, "ndim", None) == 1 or (isinstance(value, Sequence) and not isinstance(value, str | bytes))
