"""Reads an einsum equation with one letter per index; the only place in distsam that does."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from distsam.errors import ArgumentError
from distsam.tensornet.arguments import checked_size

_EXAMPLE = "write one letter per index, cores before '->' and modes behind it, as in 'ir,jr,kr->ijk'"


class Equation(NamedTuple):
    """The letters of every core, and of the modes in the order of the full tensor."""

    cores: tuple[str, ...]
    modes: str


def read_equation(equation: str) -> Equation:
    """The cores and modes of "ir,jr,kr->ijk"; spaces are ignored.

    Raises:
        ArgumentError: about "equation": it cannot be read, a letter stands twice in one core or among the modes, or a
            mode is in no core.
    """
    if not isinstance(equation, str):
        raise ArgumentError("equation", f"is {equation!r}; {_EXAMPLE}")
    left, arrow, modes = equation.replace(" ", "").partition("->")
    cores = tuple(left.split(","))
    letters = "".join(cores) + modes
    if not arrow or not modes or not all(cores) or not (letters.isascii() and letters.isalpha()):
        raise ArgumentError("equation", f"{equation!r} cannot be read; {_EXAMPLE}")
    for group in (*cores, modes):
        for letter in group:
            if group.count(letter) > 1:
                where = "the modes" if group is modes else "a core"
                raise ArgumentError(
                    "equation", f"{equation!r} repeats {letter!r} in {where}, {group!r}; once is enough"
                )
    for mode in modes:
        if mode not in left:
            raise ArgumentError("equation", f"{equation!r}: mode {mode!r} is in no core; each mode needs one")
    return Equation(cores, modes)


def check_sizes(equation: str, sizes: Mapping[str, Any]) -> None:
    """Refuses sizes that are not one integer of at least 1 for every letter of the equation and no other.

    Raises:
        ArgumentError: about "sizes", or about "equation" as `read_equation`.
    """
    letters = set("".join(read_equation(equation).cores))
    if not isinstance(sizes, Mapping):
        raise ArgumentError("sizes", f"is {sizes!r}; it must be a mapping from letter to size")
    for letter in sorted(letters - set(sizes)):
        raise ArgumentError("sizes", f"has no size for {letter!r} of the equation {equation!r}")
    for letter, size in sizes.items():
        if letter not in letters:
            raise ArgumentError("sizes", f"has {letter!r}, which is not in the equation {equation!r}")
        checked_size(size, f"sizes[{letter}]")
