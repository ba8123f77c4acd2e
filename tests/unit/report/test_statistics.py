import math

import numpy as np
import pytest
from scipy import stats

from distsam.report.statistics import corrected, difference_of, mean_of

REPETITIONS = 200


def test_interval_is_the_mean_and_the_t_quantile_times_the_standard_error():
    values = [0.7557, 0.7674, 0.7584, 0.7601, 0.7622]
    half = stats.t.ppf(0.975, 4) * np.std(values, ddof=1) / math.sqrt(5)
    mean = mean_of(values)
    assert mean.value == pytest.approx(np.mean(values), rel=1e-12)
    assert [mean.low, mean.high] == pytest.approx([np.mean(values) - half, np.mean(values) + half], rel=1e-12)


def test_difference_has_the_p_of_scipys_paired_test():
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(0.3, 1.0, 6), rng.normal(0.0, 1.0, 6)
    difference = difference_of(list(ours), list(theirs))
    expected = stats.ttest_rel(ours, theirs)
    assert difference.p == pytest.approx(expected.pvalue, rel=1e-12)
    interval = expected.confidence_interval(0.95)
    # The same number by another sum: of the differences, and of the two columns.
    assert [difference.mean.low, difference.mean.high] == pytest.approx([interval.low, interval.high], rel=1e-9)


def test_correction_is_that_of_benjamini_and_hochberg():
    # p (n / rank), from the largest down never larger than the one before: 0.01 * 4, 0.02 * 2, 0.03 * 4 / 3, 0.4.
    assert corrected([0.4, 0.01, None, 0.03, 0.02]) == pytest.approx([0.4, 0.04, None, 0.04, 0.04])
    assert corrected([None]) == [None]


def test_a_single_number_has_no_interval_and_no_test():
    assert mean_of([1.0]).low is None
    assert difference_of([1.0], [2.0]).p is None


def test_a_run_that_is_missing_takes_its_pair_with_it():
    difference = difference_of([1.0, math.nan, 3.0], [0.5, 1.0, 2.0])
    assert difference.num_pairs == 2
    assert difference.mean.value == pytest.approx(0.75)


def test_equal_numbers_are_no_difference_and_a_constant_one_is_certain():
    assert difference_of([1.0, 2.0], [1.0, 2.0]).p == 1.0
    assert difference_of([2.0, 3.0], [1.0, 2.0]).p == 0.0


def rejects(arms: np.ndarray) -> bool:
    """Whether any arm is called different from the first; (arm, seed) scores."""
    p_values = corrected([difference_of(list(arm), list(arms[0])).p for arm in arms[1:]])
    return any(p is not None and p < 0.05 for p in p_values)


@pytest.mark.parametrize("num_arms", [2, 7])
def test_equal_arms_are_called_different_at_the_nominal_rate(num_arms: int):
    rng = np.random.default_rng(1)
    # Seeds are harder or easier for all arms alike, as splits are.
    count = sum(rejects(rng.normal(0, 0.01, (num_arms, 5)) + rng.normal(0, 0.05, 5)) for _ in range(REPETITIONS))
    low, high = stats.binom.interval(0.99, REPETITIONS, 0.05)
    # Several arms share the reference, and their tests are alike: then the correction is on the safe side.
    assert (low if num_arms == 2 else 1) <= count <= high


def test_a_planted_difference_is_found():
    rng = np.random.default_rng(2)
    arms = rng.normal(0, 0.01, (7, 5)) + rng.normal(0, 0.05, 5)
    arms[3] += 0.1  # seven standard deviations of a difference
    p_values = corrected([difference_of(list(arm), list(arms[0])).p for arm in arms[1:]])
    assert [i for i, p in enumerate(p_values) if p is not None and p < 0.05] == [2]
