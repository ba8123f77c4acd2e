"""The law of the norm deviation on the Tucker-2 toy of configs/toy_tucker2.yaml, through the whole package."""

import json
from pathlib import Path
from typing import Any

import pytest

from distsam.train import load_config, run_training

CONFIG = Path(__file__).parents[2] / "configs" / "toy_tucker2.yaml"
PREFIX = "balance/network/"


def rows_of(folder: Path, *overrides: str) -> list[dict[str, Any]]:
    run_training(load_config(CONFIG, [f"run.dir={folder}", *overrides]))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["train/step"] > 0]


def test_the_measured_rate_is_the_predicted_one_up_to_the_length_of_the_step(tmp_path: Path) -> None:
    """For steps of length eta, (Q' - Q) / eta = exact law + eta (2 K Cov(s, gamma~) + ...): a tenth of the length,
    a tenth of the gap. What is left over is of second order in eta and rounding."""
    gaps = []
    for rate in (2e-6, 2e-7):
        row = rows_of(tmp_path / str(rate), f"optim.lr={rate}", "train.steps=1")[0]
        measured, exact = row[PREFIX + "measured_rate"], row[PREFIX + "predicted_rate_exact"]
        gaps.append((measured - exact) / exact)
    assert gaps[0] / gaps[1] == pytest.approx(10, rel=1e-2)
    assert abs(gaps[1]) < 1e-3


def test_the_first_order_rate_approaches_the_exact_one_as_rho_shrinks(tmp_path: Path) -> None:
    gaps = []
    for rho in (1e-2, 1e-3):
        row = rows_of(tmp_path / str(rho), f"optim.rho={rho}", "train.steps=1")[0]
        first_order, exact = row[PREFIX + "predicted_rate"], row[PREFIX + "predicted_rate_exact"]
        gaps.append((first_order - exact) / exact)
    assert gaps[0] / gaps[1] == pytest.approx(10, rel=0.05)


def test_q_stays_under_small_plain_steps_and_falls_under_sam_from_this_start(tmp_path: Path) -> None:
    change = {}
    for method in ("base", "sam"):
        rows = rows_of(tmp_path / method, f"optim.method={method}", "train.steps=1000", "train.eval_every=1000")
        first, last = rows[0][PREFIX + "norm_deviation"], rows[-1][PREFIX + "norm_deviation"]
        change[method] = (last - first) / first
        rates = [row[PREFIX + "predicted_rate_exact"] for row in rows]
        assert all(rate == 0 for rate in rates) if method == "base" else all(rate < 0 for rate in rates)
    # Plain steps drift like SAM with radius eta ||g|| / 2: here ||g|| < 1000, so less than a 200th of rho = 0.2.
    assert abs(change["base"]) < abs(change["sam"]) / 100
    assert change["sam"] < -1e-3


def test_the_last_step_is_one_whole_row_whatever_the_log_cadence(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "run", "train.steps=20", "train.log_every=7")
    assert [row["train/step"] for row in rows] == [1, 7, 14, 20]
    for name in ("train/loss", "train/r2", PREFIX + "norm_deviation", PREFIX + "measured_rate"):
        assert isinstance(rows[-1][name], float), name
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary[PREFIX + "measured_rate"] == rows[-1][PREFIX + "measured_rate"]
