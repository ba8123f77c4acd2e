import numpy as np
import pytest
import torch

from distsam.tasks.metrics import FitMetric

RNG = np.random.default_rng(0)


def score(predictions, values, centre=None, pieces=1):
    metric = FitMetric(float(np.mean(values)) if centre is None else centre)
    for rows in np.array_split(np.arange(len(values)), pieces):
        metric.update(torch.as_tensor(predictions[rows]), torch.as_tensor(values[rows]))
    return metric.compute()


def test_scores_equal_their_definitions_however_the_updates_are_cut():
    values, errors = RNG.standard_normal(1000) + 3, RNG.standard_normal(1000)
    for pieces in (1, 7, 1500):  # the last with empty updates
        scores = score(values + errors, values, pieces=pieces)
        assert scores["rmse"] == pytest.approx(np.sqrt(np.mean(errors**2)), rel=1e-12)
        assert scores["mae"] == pytest.approx(np.mean(np.abs(errors)), rel=1e-12)
        assert scores["r2"] == pytest.approx(1 - np.mean(errors**2) / values.var(), rel=1e-12)
        assert scores["r2_uncentred"] == pytest.approx(1 - np.mean(errors**2) / np.mean(values**2), rel=1e-12)


def test_r2_survives_a_mean_that_is_a_hundred_million_times_the_spread():
    # The textbook sum y^2 - n mean^2 has no digit left here: eps * 1e16 is the variance.
    deviations = RNG.standard_normal(1000)
    values = deviations + 1e8
    deviations = values - 1e8
    predictions = values + 0.5
    expected = 1 - 0.25 / np.var(deviations)
    assert score(predictions, values)["r2"] == pytest.approx(expected, rel=1e-9)


def test_r2_does_not_depend_on_the_centre():
    values, predictions = RNG.standard_normal((2, 100))
    here, there = (score(predictions, values, centre)["r2"] for centre in (0.0, 3.0))
    assert here == pytest.approx(there, rel=1e-12)


def test_r2_of_tiny_values_is_not_taken_for_constant():
    values = RNG.standard_normal(100) * 1e-8
    assert score(values * 0.5, values)["r2_uncentred"] == pytest.approx(0.75, rel=1e-9)
    assert score(values * 0 + values.mean(), values)["r2"] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("constant", [0.1, -1e6, 1 / 3])
def test_constant_values_have_no_centred_r2(constant):
    values = np.full(997, constant)
    scores = score(values + 1, values)
    assert scores["r2"] is None
    assert scores["r2_uncentred"] == pytest.approx(1 - 1 / constant**2)


def test_rounding_of_a_constant_is_no_variance():
    values = np.array([0.3, 0.1 + 0.2] * 50)
    assert values.var() > 0
    assert score(values + 1, values)["r2"] is None


def test_zeros_have_neither_r2_but_an_error():
    scores = score(np.ones(5), np.zeros(5))
    assert (scores["r2"], scores["r2_uncentred"], scores["rmse"], scores["mae"]) == (None, None, 1.0, 1.0)


def test_one_value_has_no_centred_r2_and_raises_no_warning():
    scores = score(np.array([1.0]), np.array([2.0]))
    assert (scores["count"], scores["r2"], scores["r2_uncentred"]) == (1.0, None, 0.75)


def test_no_value_has_no_score():
    scores = score(np.empty(0), np.empty(0), centre=0.0)
    assert scores == {"count": 0.0, "rmse": None, "mae": None, "r2": None, "r2_uncentred": None}


def test_float32_predictions_are_summed_in_float64():
    values = np.full(4_000_000, 1.0)
    predictions = np.full(4_000_000, 1.1, dtype=np.float32)
    error = float(np.float32(1.1)) - 1.0
    assert score(predictions, values)["mae"] == pytest.approx(error, rel=1e-12)
    assert score(predictions, values)["rmse"] == pytest.approx(error, rel=1e-12)


def test_a_diverged_model_scores_nan_not_none():
    scores = score(np.array([np.nan, 0.0]), np.array([1.0, 2.0]))
    assert np.isnan(scores["rmse"])
    assert np.isnan(scores["r2"])
