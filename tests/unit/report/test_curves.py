import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from distsam.errors import InputError
from distsam.report import curves
from distsam.runs.summary import SavedGoal, Summary


def row(step: int) -> dict[str, float | int | None]:
    return {
        "train/step": step,
        "train/loss": None if step == 0 else 1 / step,
        "train/r2": 1 - 1 / (step + 1),
        "heldout/r2": -float(step),
        "balance/network/norm_deviation": 1e-13 if step == 0 else 10.0 * step,
        "balance/network/core_norm_sq/left": 1.0 + step,
        "balance/network/core_norm_sq/right": 2.0,
    }


def write(folder: Path, rows: list[dict[str, float | int | None]], tail: str = "") -> Path:
    text = "".join(json.dumps(r) + "\n" for r in rows)
    (folder / "metrics.jsonl").write_text(text + tail)
    return folder


@pytest.mark.parametrize("steps", [0, 1, 20])
def test_curves_are_drawn_however_few_rows_there_are(tmp_path: Path, steps: int) -> None:
    target = curves.draw_curves(write(tmp_path, [row(s) for s in range(steps)], tail='{"cut'))
    assert matplotlib.image.imread(target).shape[:2] == (960, 1920)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["curves.png", "metrics.jsonl"]


def drawn_axes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The six panels of curves.png."""
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, stream, **_: figures.append(self))
    curves.draw_curves(folder)
    return figures[0].axes


def test_axes_have_labels_with_units_and_say_what_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    axes = drawn_axes(write(tmp_path, [row(s) for s in range(20)]), monkeypatch)
    loss, r2, errors, deviation, norms, speed = axes
    assert all("[" in axis.get_ylabel() for axis in axes)
    assert all("[updates]" in axis.get_xlabel() for axis in axes)
    assert "cut off above 2" in r2.get_ylabel()
    assert max(value for line in r2.lines for value in line.get_ydata()) == 2
    assert errors.get_title() == "RMSE on each part of the data"
    assert len(speed.lines) <= 1
    assert "cut off" in deviation.get_ylabel()
    assert [text.get_text() for text in norms.get_legend().get_texts()] == ["left", "right"]
    assert len(loss.lines) == 1


@pytest.mark.parametrize("start", [0.0, 1e-13])
def test_a_deviation_that_starts_at_nothing_is_marked_at_the_foot_of_its_axis(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: float
) -> None:
    """A logarithmic axis has no place for 0: the first point was not in the picture, and nothing said so."""
    rows = [{"train/step": s, "balance/network/norm_deviation": 10.0**s if s else start} for s in range(4)]
    deviation = drawn_axes(write(tmp_path, rows), monkeypatch)[3]
    assert deviation.get_yscale() == "log"
    floor = deviation.get_ylim()[0]
    assert 1 < floor < 10
    curve, marks = deviation.lines
    assert list(curve.get_ydata()) == [floor, 10, 100, 1000]
    assert (list(marks.get_xdata()), list(marks.get_ydata()), marks.get_marker()) == ([0], [floor], "v")
    assert "cut off below 3 (▼)" in deviation.get_ylabel()


def legend_of(axis: Any) -> list[str]:
    return [text.get_text() for text in axis.get_legend().get_texts()]


def test_every_network_has_its_own_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cores of all networks were named after those of one."""
    cores = {"encoder.0": ("central", "factor_0"), "head": ("core_0", "core_1", "core_2")}
    norms = {f"balance/{n}/core_norm_sq/{core}": 4.0 for n, names in cores.items() for core in names}
    rows = [{"train/step": s, **norms} for s in range(3)]
    axis = drawn_axes(write(tmp_path, rows), monkeypatch)[4]
    assert legend_of(axis) == [f"{network}, {core}" for network, names in cores.items() for core in names]


def test_the_score_is_the_goals_on_every_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = {"train/error": 0.5, "test/error": 0.7, "test/other": 3.0, "last/test/error": 1.0}
    Summary(goal=SavedGoal("test/error", higher_is_better=False)).write(tmp_path / "summary.json")
    axis = drawn_axes(write(tmp_path, [{"train/step": s, **scores} for s in range(3)]), monkeypatch)[1]
    assert legend_of(axis) == ["train (last 0.5)", "test (last 0.7)"]
    assert axis.get_title() == "Score: error (lower is better)"


def test_without_a_summary_the_score_that_most_parts_have_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = {"sam/skipped": 0, "time/elapsed_s": 1.0, "das/clipped": 1, "test/top1": 0.1, "a/top5": 0.2, "b/top5": 0.3}
    axis = drawn_axes(write(tmp_path, [{"train/step": s, **scores} for s in range(3)]), monkeypatch)[1]
    assert legend_of(axis) == ["a (last 0.2)", "b (last 0.3)"]
    assert axis.get_title() == "Score: top5"


def test_a_single_row_is_a_visible_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for axis in drawn_axes(write(tmp_path, [row(1)]), monkeypatch):
        assert all(line.get_marker() not in ("None", "") for line in axis.lines)


def test_core_norms_are_drawn_as_norms_not_as_their_squares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"train/step": s, "balance/n/core_norm_sq/left": (s + 2.0) ** 2} for s in range(3)]
    norms = drawn_axes(write(tmp_path, rows), monkeypatch)[4]
    assert list(norms.lines[0].get_ydata()) == [2.0, 3.0, 4.0]


@pytest.mark.parametrize(
    ("networks", "cores", "note"),
    [(1, 40, "40 cores, dark to light in order"), (64, 2, "128 cores of 64 networks, dark to light in order")],
)
def test_many_cores_get_a_note_instead_of_a_legend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, networks: int, cores: int, note: str
) -> None:
    keys = [f"balance/n.{n}/core_norm_sq/{k}" for n in range(networks) for k in range(cores)]
    rows = [{"train/step": s, **{key: 1.0 + s + i for i, key in enumerate(keys)}} for s in range(3)]
    norms = drawn_axes(write(tmp_path, rows), monkeypatch)[4]
    [text] = norms.texts
    last = "39" if networks == 1 else "n.63, 1"
    assert text.get_text() == f"{note}\nhighest at the end: {last}"


def test_a_folder_without_metrics_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"metrics.jsonl: no such file"):
        curves.draw_curves(tmp_path)


def test_report_is_imported_without_torch() -> None:
    code = "import distsam.report.curves, sys; sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_good_scores_are_told_apart_and_the_best_step_is_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between -1 and 1.02 an R2 of 0.94 and one of 0.997 looked the same."""
    goal = SavedGoal("validation/r2", columns=("r2",))
    Summary(goal=goal, best_step=2).write(tmp_path / "summary.json")
    rows = [{"train/step": s, "validation/r2": 0.94, "heldout/r2": 0.997} for s in range(3)]
    axis = drawn_axes(write(tmp_path, rows), monkeypatch)[1]
    assert axis.get_yscale() == "log"
    assert legend_of(axis) == ["validation (last R² 0.94)", "heldout (last R² 0.997)", "best, step 2"]
    low, high = (float(np.log10(limit)) for limit in axis.get_ylim())
    assert (np.log10(0.06) - np.log10(0.003)) / (high - low) > 0.5
