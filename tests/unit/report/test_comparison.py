import json
import math
from pathlib import Path
from typing import Any

import pytest

from distsam.report.comparison import summarise

STEPS = (0, 10, 20)


def write_run(
    folder: Path, *, score: float | None, goals: tuple[float, ...] = (0.0, 0.5, 0.7), data: str = "d"
) -> None:
    """A run that took 2 seconds for 20 steps, with a norm deviation of 0, 1, 2."""
    folder.mkdir(parents=True)
    rows = [
        {
            "train/step": step,
            "validation/r2": goal,
            "balance/net/norm_deviation": step / 10,
            "time/elapsed_s": step / 10,
        }
        | ({"time/steps_per_s": 10.0} if step else {})
        for step, goal in zip(STEPS, goals, strict=True)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if score is not None:
        goal = {"key": "validation/r2", "higher_is_better": True, "columns": ["r2"], "headline": []}
        numbers = {"heldout/r2": score, "validation/r2": goals[-1], "balance/net/norm_deviation": 2.0}
        content = {**numbers, "steps": 20, "stopped_by": "last step", "goal": goal, "data_sha256": data}
        (folder / "summary.json").write_text(json.dumps(content))


def facts(arms: dict[str, list[str]]) -> dict[str, Any]:
    seeds = [str(i) for i in range(len(next(iter(arms.values()))))]
    return {
        "goal": {"key": "validation/r2", "higher_is_better": True},
        "score": "heldout/r2",
        "seeds": [int(seed) for seed in seeds],
        "arms": {name: {"tuned": {}, "runs": dict(zip(seeds, runs, strict=True))} for name, runs in arms.items()},
    }


def compared(folder: Path, scores: dict[str, list[float | None]], **more: Any) -> dict[str, Any]:
    for name, values in scores.items():
        for seed, value in enumerate(values):
            write_run(folder / name / str(seed), score=value, **more)
    return summarise(folder, facts({name: [f"{name}/{i}" for i in range(len(v))] for name, v in scores.items()}))


def test_every_number_of_an_arm_comes_from_its_runs(tmp_path: Path):
    result = compared(tmp_path, {"base": [0.5, 0.6], "sam": [0.6, 0.8]})
    sam = result["arms"]["sam"]
    assert sam["scores"] == {"0": 0.6, "1": 0.8}
    assert sam["mean"] == pytest.approx(0.7)
    assert sam["step_s"] == pytest.approx(0.1)
    assert sam["deviation"] == 2.0
    assert sam["paths"] == {"steps": [0, 10, 20], "deviation": {"0": [0.0, 1.0, 2.0], "1": [0.0, 1.0, 2.0]}}
    # The target is the goal that the first arm ends at: 0.7, at step 20.
    assert (result["target"], sam["target_s"], sam["reached"]) == (pytest.approx(0.7), 2.0, 2)


def test_differences_are_paired_by_seed(tmp_path: Path):
    result = compared(tmp_path, {"base": [0.1, 0.5, 0.9], "sam": [0.2, 0.61, 1.0]})
    (difference,) = result["differences"]
    assert difference["mean"] == pytest.approx(0.31 / 3)
    # Not paired, the spread of the seeds would hide it.
    assert difference["p_corrected"] < 0.01
    assert result["verdict"].startswith("In heldout/r2, sam is better than base by 0.103 (")


def test_no_difference_is_said(tmp_path: Path):
    result = compared(tmp_path, {"base": [0.5, 0.6, 0.7], "sam": [0.6, 0.5, 0.71]})
    assert result["verdict"].startswith("No difference: no arm differs from base in heldout/r2 beyond chance (3 seeds")


def test_one_seed_has_no_interval_and_the_verdict_says_so(tmp_path: Path):
    result = compared(tmp_path, {"base": [0.5], "sam": [0.9]})
    assert result["arms"]["sam"]["interval"] is None
    assert result["differences"][0]["p"] is None
    assert result["verdict"].startswith("One seed says nothing of chance")


def test_a_run_without_a_score_is_left_out_and_named(tmp_path: Path):
    result = compared(tmp_path, {"base": [0.5, 0.6, 0.7], "sam": [0.6, None, 0.8]})
    assert result["differences"][0]["num_pairs"] == 2
    assert math.isnan(result["arms"]["sam"]["scores"]["1"])
    assert result["notes"][0] == "sam: no heldout/r2 for seed 1 (diverged, or the run is damaged); left out"
    assert result["notes"][1].startswith("3 seeds are few")


def test_runs_of_different_data_are_named(tmp_path: Path):
    for name, data in (("base", "one"), ("sam", "other")):
        write_run(tmp_path / name, score=0.5, data=data)
    result = summarise(tmp_path, facts({"base": ["base"], "sam": ["sam"]}))
    assert any("seed 0: the arms were trained on different data" in note for note in result["notes"])
