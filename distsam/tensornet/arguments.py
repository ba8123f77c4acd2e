"""What a user may give for a size, a number or a list of them: Python's, numpy's and torch's; else an InputError."""

from collections.abc import Sequence
from math import isfinite, nan
from numbers import Real
from operator import index as as_int
from typing import Any

from distsam.errors import InputError


def checked_size(value: Any, what: str) -> int:
    """The integer that `value` is, at least 1.

    Raises:
        InputError: it is no integer (booleans count as none) or below 1; the message names `what`.
    """
    try:
        size = None if isinstance(value, bool) else as_int(value)
    except TypeError:
        size = None
    if size is None or size < 1:
        raise InputError(f"{what} is {value!r}; it must be an integer of at least 1")
    return size


def checked_positive(value: Any, what: str) -> float:
    """The number that `value` is, positive and finite.

    Raises:
        InputError: it is not; the message names `what`.
    """
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else nan
    if not (isfinite(number) and number > 0):
        raise InputError(f"{what} is {value!r}; it must be a positive finite number")
    return number


def checked_list(value: Any, what: str) -> list[Any]:
    """The elements of a sequence, or of a 1-D array or tensor.

    Raises:
        InputError: it is none; the message names `what`.
    """
    if not is_list(value):
        raise InputError(f"{what} is {value!r}; it must be a list")
    return list(value.tolist() if hasattr(value, "tolist") else value)


def is_list(value: Any) -> bool:
    """True for a sequence other than a text, and for a 1-D array or tensor."""
    return getattr(value, "ndim", None) == 1 or (isinstance(value, Sequence) and not isinstance(value, str | bytes))
