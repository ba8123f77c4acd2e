"""TensorBoard's files, read back by TensorBoard's own reader."""

from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from distsam.runs.rows import STEP
from distsam.train.trackers.tensorboard import TensorboardTracker


def read(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    found.Reload()
    return found


def texts(found: EventAccumulator, tag: str) -> list[tuple[int, str]]:
    return [(event.step, event.tensor_proto.string_val[0].decode()) for event in found.Tensors(tag)]


def logged(tracker: TensorboardTracker, *rows: dict[str, Any]) -> None:
    for row in rows:
        tracker.log(row)
    tracker.close()


def test_every_finite_number_of_a_row_is_there_at_its_step(tmp_path: Path) -> None:
    tracker = TensorboardTracker(tmp_path / "a" / "b", 0, {"optim": {"lr": 0.5}})
    tracker.log({STEP: 0, "train/loss": None, "x": 10**400})
    tracker.log({STEP: 7, "train/loss": 0.5, "balance/net.0/core_norm_sq/left": float("nan"), "das/clipped": 3})
    tracker.alert("core left holds 90 %")
    tracker.close()
    found = read(tmp_path / "a" / "b")
    scalars = {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}
    assert scalars == {"train/loss": [(7, 0.5)], "das/clipped": [(7, 3.0)]}
    assert texts(found, "alerts") == [(7, "core left holds 90 %")]
    assert '"lr": 0.5' in texts(found, "config")[0][1]


def test_a_row_can_be_read_while_the_run_goes_on(tmp_path: Path) -> None:
    """A killed run must not lose what it had logged."""
    tracker = TensorboardTracker(tmp_path, 0)
    tracker.log({STEP: 1, "train/loss": 0.5})
    assert len(read(tmp_path).Scalars("train/loss")) == 1
    tracker.close()


@pytest.mark.parametrize(("start", "expected"), [(4, [1, 2, 4, 6]), (0, [6])])
def test_steps_that_are_done_again_replace_those_before(tmp_path: Path, start: int, expected: list[int]) -> None:
    """Killed at step 8, gone on from the checkpoint of step 4 with another cadence: step 5 is not logged again."""
    rows = [{STEP: step, "train/loss": 0.5} for step in (1, 2, 4, 5, 8)]
    logged(TensorboardTracker(tmp_path, 0), *rows)
    logged(TensorboardTracker(tmp_path, start), {STEP: 6, "train/loss": 0.25})
    assert [event.step for event in read(tmp_path).Scalars("train/loss")] == expected


def test_a_folder_that_cannot_be_written_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    tracker = TensorboardTracker(tmp_path / "file", 0)
    logged(tracker, {STEP: 1, "train/loss": 0.5}, {STEP: 2, "train/loss": 0.5})
    tracker.alert("still here")
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("distsam: TensorBoard's file failed, the run goes on without it: ")


def test_a_full_disk_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """tensorboard's own writer printed a traceback of its thread, and another line for every row."""
    tracker = TensorboardTracker(tmp_path, 0)
    with Path("/dev/full").open("wb", buffering=0) as full:
        monkeypatch.setattr(tracker._records, "_writer", full)
        logged(tracker, {STEP: 1, "train/loss": 0.5}, {STEP: 2, "train/loss": 0.5})
    assert capsys.readouterr().err == (
        "distsam: TensorBoard's file failed, the run goes on without it: No space left on device\n"
    )
