"""What every tracker promises: a new one adds a line to TRACKERS and inherits every test."""

from collections.abc import Callable
from pathlib import Path

import pytest

from distsam.train.trackers.jsonl import JsonlTracker
from distsam.train.trackers.tensorboard import TensorboardTracker
from distsam.train.trackers.tracker import Tracker, TrackerGroup
from distsam.train.trackers.wandb import WandbTracker

TRACKERS: dict[str, Callable[[Path], Tracker]] = {
    "jsonl": lambda folder: JsonlTracker(folder / "metrics.jsonl", start_step=0),
    "wandb:disabled": lambda folder: WandbTracker("disabled", folder),
    "wandb:offline": lambda folder: WandbTracker("offline", folder),
    "tensorboard": lambda folder: TensorboardTracker(folder / "events", start_step=0),
    "group": lambda folder: TrackerGroup([JsonlTracker(folder / "metrics.jsonl", 0), WandbTracker("disabled", folder)]),
}
ROWS: list[dict[str, float | int | None]] = [
    {"train/step": 0, "train/loss": None, "validation/r2": float("nan")},
    {"train/step": 1, "train/loss": float("inf"), "balance/net.0/core_norm_sq/left": 1e300, "das/clipped": 10**30},
    {"train/step": 7, "a/new/key": -0.0},
]


@pytest.fixture(params=TRACKERS)
def tracker(request: pytest.FixtureRequest, tmp_path: Path) -> Tracker:
    return TRACKERS[request.param](tmp_path)


def test_a_tracker_takes_any_row_and_changes_none(tracker: Tracker) -> None:
    for row in ROWS:
        given = dict(row)
        tracker.log(given)
        assert list(map(str, given.items())) == list(map(str, row.items()))
    tracker.close()


def test_a_tracker_takes_alerts_and_is_silent_itself(tracker: Tracker, capfd: pytest.CaptureFixture[str]) -> None:
    """A message has been printed when the trackers hear of it: no second time."""
    tracker.log(ROWS[0])
    tracker.alert("10 steps were skipped; lower optim.lr " + "x" * 500)
    tracker.alert("")
    tracker.log(ROWS[1])
    tracker.close()
    assert capfd.readouterr() == ("", "")


def test_a_tracker_can_be_closed_twice_and_without_a_row(tracker: Tracker) -> None:
    tracker.close()
    tracker.close()
