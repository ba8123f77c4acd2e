"""`distsam.complete`: three lines of Python from a tensor with gaps to the completed one."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pytest

import distsam

MINUTES = 0.15


def lowrank(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A noisy tensor of rank 2, the same with 40 % missing, and where it is known."""
    rng = np.random.default_rng(seed)
    factors = [rng.normal(size=(size, 2)) for size in (20, 15, 10)]
    truth = np.einsum("ar,br,cr->abc", *factors)
    truth += 0.05 * truth.std() * rng.normal(size=truth.shape)
    known = rng.random(truth.shape) < 0.6
    return truth, np.where(known, truth, np.nan), known


@pytest.fixture(scope="module")
def completed(tmp_path_factory: pytest.TempPathFactory):
    return distsam.complete(lowrank()[1], minutes=MINUTES, workers=1, path=tmp_path_factory.mktemp("c") / "runs")


def test_known_entries_are_kept_and_hidden_ones_found(completed):
    truth, given, known = lowrank()
    np.testing.assert_array_equal(completed.tensor[known], given[known])
    error = completed.tensor[~known] - truth[~known]
    # The mean of the known entries leaves the variance of the truth, a fit of rank 2 its noise.
    assert (error**2).mean() < 0.2 * truth[~known].var()


def test_scores_are_of_entries_that_the_search_did_not_see(completed):
    truth, _, known = lowrank()
    error = completed.prediction[~known] - truth[~known]
    r2 = 1 - (error**2).mean() / truth[~known].var()
    # The last fit has a tenth more entries than those that were scored, so it is as good or better.
    assert completed.scores["heldout/r2"] - 0.1 < r2 <= 1
    assert completed.balance["norm_deviation"] >= 0
    assert set(completed.balance) == {"norm_deviation", "relative_deviation", "max_over_min"}


def test_its_folder_holds_runs_that_open_again(completed):
    run = distsam.load(completed.run)
    np.testing.assert_array_equal(run.task.fill(run.model, keep_known=False), completed.prediction)
    assert completed.settings["optim.lr"] == run.config.optim.lr


def test_a_frame_is_completed_with_its_labels():
    _, given, known = lowrank()
    index = np.argwhere(known)
    frame = pa.table(
        {
            "site": pa.array([f"s{i:02}" for i in index[:, 0]]),
            "day": pa.array(index[:, 1]),
            "sensor": pa.array([f"x{i}" for i in index[:, 2]]),
            "value": pa.array(given[known]),
        }
    )
    found = distsam.complete(frame, minutes=MINUTES, workers=1, progress=False)
    table = found.table()
    assert table.column_names == ["site", "day", "sensor", "value", "prediction", "known"]
    assert len(table) == found.tensor.size == given.size
    rows = table.filter(pa.compute.equal(table["known"], True))
    assert len(rows) == len(frame)
    assert found.run is None  # nothing was asked to be kept


def test_nothing_is_printed_without_progress(capfd: pytest.CaptureFixture[str], tmp_path: Path):
    distsam.complete(lowrank()[1], minutes=0.05, workers=1, progress=False)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (np.array([["a", "b"]]), "data: an array of <U1 of shape \\(1, 2\\) is no tensor of numbers"),
        (np.arange(5.0), "data: an array of float64 of shape \\(5,\\) is no tensor"),
        (np.full((4, 4, 4), np.nan), "data.path"),
    ],
)
def test_what_is_no_tensor_is_refused(data: np.ndarray, problem: str):
    with pytest.raises(distsam.InputError, match=problem):
        distsam.complete(data, minutes=MINUTES, workers=1)


def test_no_time_is_refused():
    with pytest.raises(distsam.InputError, match="minutes: 0 is no time"):
        distsam.complete(np.ones((3, 3)), minutes=0)
