"""Means with their intervals, and paired differences with their tests, by scipy."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Mean:
    """The mean of some numbers, and where the mean of all such numbers lies with 95 % confidence.

    Args:
        value: nan for no numbers.
        low, high: None where fewer than two numbers say nothing of their spread.
    """

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Difference:
    """How much larger the numbers of one arm are than those of another, pair by pair.

    Args:
        mean: of the differences, with its interval.
        p: of a two-sided paired t-test that the mean is 0; None where fewer than two pairs are there.
        num_pairs: how many are there.
    """

    mean: Mean
    p: float | None
    num_pairs: int


def mean_of(values: Sequence[float]) -> Mean:
    """Mean and 95 % t-interval of independent numbers.

    Args:
        values: (n,) numbers; those that are nan are left out.
    """
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return Mean(math.nan, None, None)
    mean = math.fsum(known) / len(known)
    if len(known) < 2:
        return Mean(mean, None, None)
    if _are_equal(known, scale=max(map(abs, known))):  # the t statistic would be 0 / 0
        return Mean(mean, mean, mean)
    interval = stats.ttest_1samp(known, 0.0).confidence_interval(CONFIDENCE)
    return Mean(mean, float(interval.low), float(interval.high))


def difference_of(values: Sequence[float], reference: Sequence[float]) -> Difference:
    """`values` minus `reference`, pair by pair, with a paired t-test.

    Args:
        values, reference: (n,) numbers of the same n seeds; a pair of which one is nan is left out.
    """
    pairs = [(a, b) for a, b in zip(values, reference, strict=True) if not math.isnan(a - b)]
    differences = [a - b for a, b in pairs]
    mean = mean_of(differences)
    if len(pairs) < 2:
        return Difference(mean, None, len(pairs))
    scale = max(abs(value) for pair in pairs for value in pair)
    if _are_equal(differences, scale):
        return Difference(mean, 1.0 if _are_equal([mean.value, 0.0], scale) else 0.0, len(pairs))
    test = stats.ttest_rel([a for a, _ in pairs], [b for _, b in pairs])
    return Difference(mean, float(test.pvalue), len(pairs))


def corrected(p_values: Sequence[float | None]) -> list[float | None]:
    """The p values of several tests, corrected for their number; None stays.

    By Benjamini and Hochberg: of the differences that are called real at 0.05, at most one in twenty is expected to be
    none. Where no arm differs at all, the chance to call any of them real is 0.05 too.

    Source: Benjamini & Hochberg (1995), J. R. Stat. Soc. B 57, 289; scipy.stats.false_discovery_control.
    """
    known = [p for p in p_values if p is not None]
    adjusted = iter(stats.false_discovery_control(known, method="bh").tolist() if known else [])
    return [None if p is None else float(next(adjusted)) for p in p_values]


def _are_equal(values: Sequence[float], scale: float) -> bool:
    """Whether what `values` differ by is rounding of numbers as large as `scale`, of a few operations in float64."""
    return max(values) - min(values) <= 8 * sys.float_info.epsilon * scale
