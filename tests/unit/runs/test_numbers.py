import numpy as np
import pytest

from distsam.runs.numbers import is_finite, without_infinities

INFINITY, NAN = float("inf"), float("nan")


@pytest.mark.parametrize("value", [0, -1.5, True, 10**400, np.float64(2)])
def test_a_finite_number_is_finite(value: object) -> None:
    assert is_finite(value)


@pytest.mark.parametrize("value", [INFINITY, -INFINITY, NAN, None, "1", [1], np.float64("nan")])
def test_what_is_no_number_is_not_finite(value: object) -> None:
    assert not is_finite(value)


def test_what_is_not_finite_becomes_none_however_deep_it_lies() -> None:
    """A diverged run gave `Infinity`, which is no JSON."""
    given = {"a": INFINITY, "b": NAN, "c": None, "d": 0.5, "e": {"f": [1, -INFINITY]}, "g": "inf"}
    clean = {"a": None, "b": None, "c": None, "d": 0.5, "e": {"f": [1, None]}, "g": "inf"}
    assert without_infinities(given) == clean
