"""Which parts of the rate a config lets be told; their values are checked on real runs in test_report.py."""

from typing import Any

import pytest

from distsam.report.attribution import attribute, law_of
from distsam.report.page_data import thinned

OPTIM = {"method": "sam", "base": "sgd", "lr": 0.1, "weight_decay": 0.0, "momentum": 0.0, "clip_norm": None}
STEADY = {"schedule": "constant", "warmup_steps": 0, "rho": 0.05, "rho_schedule": "constant", "rho_warmup_steps": 0}
ROW = {
    "train/step": 3,
    "sam/grad_norm": 2.0,
    "balance/n/norm_deviation": 5.0,
    "balance/n/covariance": -1.0,
    "balance/n/predicted_rate": -0.5,
    "balance/n/predicted_rate_exact": -0.6,
    "balance/n/measured_rate": -2.0,
}


def terms(**keys: Any) -> dict[str, float | None]:
    law = law_of({**OPTIM, **STEADY, "scope": "global", **keys})
    found = attribute([ROW], "n", 4, law)
    return {name: values[0] for name, values in found.terms.items()}


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        # -1.0 * 2 * eta * K; the rest is what is left of -2.
        ({}, {"ascent (SAM)": -0.6, "discrete steps": -0.8, "rest": -0.6}),
        ({"method": "base"}, {"discrete steps": -0.8, "rest": -1.2}),
        ({"method": "nbar"}, {"rescale": -0.6, "discrete steps": -0.8, "rest": -0.6}),
        # First order: 4 * 0.05 * 4 * -1 / 2 = -0.4, so the rescale has -0.1 of -0.5, the ascent -0.5 of -0.6.
        ({"method": "sam+das"}, {"rescale": -0.1, "ascent (SAM)": -0.5, "discrete steps": -0.8, "rest": -0.6}),
        ({"method": "sam+das", "scope": "core"}, {"ascent and rescale": -0.6, "discrete steps": -0.8, "rest": -0.6}),
        ({"method": "sam+das", "base": "adam"}, {"rescale": -0.1, "rest": -1.9}),
        ({"method": "sam", "base": "adam"}, {"rest": -2.0}),
        ({"momentum": 0.9}, {"rest": -2.0}),
        ({"clip_norm": 1.0}, {"ascent (SAM)": -0.6, "rest": -1.4}),
        ({"schedule": "cosine"}, {"ascent (SAM)": -0.6, "rest": -1.4}),
        # Q before the step: 5 + 0.1 * 2.
        ({"base": "adamw", "weight_decay": 0.25}, {"weight decay": -5.2, "rest": 3.2}),
        ({"base": "adam", "weight_decay": 0.25}, {"rest": -2.0}),
    ],
)
def test_parts_are_those_that_the_config_lets_be_told(keys: dict[str, Any], expected: dict[str, float]) -> None:
    assert terms(**keys) == pytest.approx(expected, rel=1e-12)
    assert list(terms(**keys)) == list(expected)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"base": "adam"}, "No law is known for adam"),
        ({"momentum": 0.9}, "No law is known for sgd with momentum"),
        ({"base": "adam", "weight_decay": 0.1}, "L2 term passes through adam"),
        ({"method": "sam+das", "scope": "core"}, "cannot be told apart"),
        ({"schedule": "linear"}, "discrete steps is in the rest"),
    ],
)
def test_what_cannot_be_told_is_said(keys: dict[str, Any], says: str) -> None:
    law = law_of({**OPTIM, **STEADY, "scope": "global", **keys})
    assert any(says in note for note in law.notes)


def test_a_skipped_step_has_no_parts() -> None:
    law = law_of({**OPTIM, **STEADY, "scope": "global"})
    found = attribute([{**ROW, "balance/n/measured_rate": None}], "n", 4, law)
    assert (found.steps, found.terms) == ([], {})


@pytest.mark.parametrize("count", [0, 1, 2, 24, 25, 1000, 12_345])
def test_thinning_keeps_the_ends_and_the_order(count: int) -> None:
    kept = thinned(range(count), 24)
    assert kept == sorted(set(kept))
    assert len(kept) == min(count, 24)
    assert not count or (kept[0], kept[-1]) == (0, count - 1)
