"""Alerts: said when a network goes beyond a bound, once, and again only after it has come back."""

import pytest

from distsam.runs.rows import Row
from distsam.train.alerts import Alerts, Bounds


def row(step: int, deviation: float | None, *norms: float, network: str = "a") -> Row:
    found: Row = {"train/step": step, f"balance/{network}/norm_deviation": deviation}
    return {**found, **{f"balance/{network}/core_norm_sq/core_{k}": norm for k, norm in enumerate(norms)}}


def test_a_deviation_is_told_when_it_rises_above_the_limit_and_not_while_it_stays() -> None:
    alerts = Alerts(Bounds(deviation=10.0), ["a"])
    said = [alerts.look(row(step, deviation)) for step, deviation in enumerate([9.0, 11.0, 12.0, 10.0, 10.5])]
    assert [len(lines) for lines in said] == [0, 1, 0, 0, 1]
    assert said[1] == ["step 1: a: norm deviation 11 is above 10"]


def test_a_jump_is_one_from_row_to_row_and_none_from_zero() -> None:
    alerts = Alerts(Bounds(jump=3.0), ["a"])
    said = [alerts.look(row(step, deviation)) for step, deviation in enumerate([0.0, 5.0, 14.0, 50.0, 60.0])]
    assert said == [[], [], [], ["step 3: a: norm deviation grew from 14 to 50 since the row before"], []]


def test_a_core_that_holds_more_than_its_share_is_named() -> None:
    alerts = Alerts(Bounds(share=0.5), ["a"])
    assert alerts.look(row(1, 1.0, 1.0, 1.0, 2.0)) == []
    assert alerts.look(row(2, 1.0, 1.0, 1.0, 3.0)) == [
        "step 2: a: core core_2 holds 60.0% of the squared norm, more than 50.0%"
    ]
    assert alerts.look(row(3, 0.0, 0.0, 0.0, 0.0)) == []


def test_the_row_counts_the_bounds_that_are_passed_and_networks_are_apart() -> None:
    alerts = Alerts(Bounds(deviation=1.0, share=0.6), ["a", "b"])
    both = {**row(1, 2.0, 9.0, 1.0), **row(1, 0.5, 1.0, 1.0, network="b")}
    assert len(alerts.look(both)) == 2
    assert (both["balance/a/alerts"], both["balance/b/alerts"]) == (2, 0)


@pytest.mark.parametrize("found", [row(1, None), {"train/step": 1}])
def test_a_row_without_a_balance_says_nothing_and_stays_as_it_is(found: Row) -> None:
    before = dict(found)
    assert Alerts(Bounds(deviation=1e-9, jump=1.1, share=0.01), ["a"]).look(found) == []
    assert found == before


def test_without_bounds_rows_stay_as_they_are() -> None:
    found = row(1, 1e9, 1.0, 0.0)
    before = dict(found)
    assert Alerts(Bounds(), ["a"]).look(found) == []
    assert found == before
