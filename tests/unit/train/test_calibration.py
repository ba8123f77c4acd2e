import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import distsam
from distsam.cli import app
from distsam.tensornet.cost import COSTS_FILE, NANOSECONDS, Work, cost_ns, costs_in_use
from distsam.train import calibration
from distsam.train.calibration import Measured, fit


def test_a_fit_finds_the_times_that_the_measurements_were_made_of():
    truth = Work(*(2.0 * ns for ns in NANOSECONDS))
    generator = torch.Generator().manual_seed(0)
    # Of each kind of work about as much time, so that all can be told apart.
    shares = torch.rand(200, len(truth), generator=generator, dtype=torch.float64).pow(4)
    works = [Work(*(share * 1e6 / ns for share, ns in zip(row, truth, strict=True))) for row in shares.tolist()]
    measured = [Measured(work, sum(u * ns for u, ns in zip(work, truth, strict=True))) for work in works]
    found, factor = fit(measured)
    # The pull to what is in use, a thousandth of the squared logarithm, moves a coefficient by a few per cent.
    assert factor < 1.05
    for ours, theirs in zip(found, truth, strict=True):
        assert ours == pytest.approx(theirs, rel=0.2)


def test_the_command_measures_and_writes_what_plans_are_then_chosen_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(calibration, "ENTRIES", [distsam.tt((20, 20, 20), 3)])
    monkeypatch.setattr(calibration, "ENTRY_BATCHES", [100])
    monkeypatch.setattr(calibration, "TABLES", [("tt_matrix", (5, 4), (3, 2), 3)])
    monkeypatch.setattr(calibration, "TABLE_BATCHES", [9])
    monkeypatch.setattr(calibration, "LAYERS", [("tucker", (4, 4), (4, 4), 2)])
    monkeypatch.setattr(calibration, "LAYER_BATCHES", [8])
    path = tmp_path / "costs.json"
    done = CliRunner().invoke(app, ["calibrate", str(path)])
    assert done.exit_code == 0, done.output
    assert "8 vectors of tucker" in done.output
    written = json.loads(path.read_text())["nanoseconds"]
    assert list(written) == list(Work._fields)
    work = Work(calls=7)
    before = cost_ns(work)
    monkeypatch.setenv(COSTS_FILE, str(path))
    assert cost_ns(work) == pytest.approx(7 * written["calls"])
    assert before == 7 * NANOSECONDS.calls


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{folder}/there.json"], "exists; choose another name"),
        (["{folder}/none/costs.json"], "there is no folder"),
        (["{folder}/costs.json", "--device", "tpu"], "--device: 'tpu' is unknown; use cpu or cuda"),
    ],
)
def test_the_command_refuses_what_it_cannot_do(arguments: list[str], message: str, tmp_path: Path):
    (tmp_path / "there.json").write_text("mine")
    done = CliRunner().invoke(app, ["calibrate", *(text.format(folder=tmp_path) for text in arguments)])
    assert done.exit_code == 2
    assert message in done.output
    assert (tmp_path / "there.json").read_text() == "mine"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("nonsense", "is not JSON"),
        ('{"nanoseconds": {"calls": 1}}', "lacks a number"),
        (json.dumps({"nanoseconds": {**NANOSECONDS._asdict(), "calls": 0}}), "a time that is not above 0"),
    ],
)
def test_a_file_of_times_that_is_none_is_refused(content: str | None, message: str, tmp_path: Path):
    path = tmp_path / "costs.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(distsam.InputError, match=f"DISTSAM_COSTS: .*{message}"):
        costs_in_use(str(path))
