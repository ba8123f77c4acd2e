"""Run folders with something broken in them: the answer is right, or one line and exit code 2.

pytest tests/e2e/test_damaged_folders.py -m soak -n 0 -s       # 200 folders; the counts are printed
"""

import json
import random
import shutil
from collections import Counter
from pathlib import Path

import pytest
from command_line import invoke, small_config, weights

SEED = 17
STEPS = 30


def damage(run_dir: Path, rng: random.Random) -> str:
    """Break one file of the folder, in one of seven ways."""
    file = rng.choice(sorted(p for p in run_dir.rglob("*") if p.is_file() and p.name != "curves.png"))
    how = rng.choice(["flip", "flip", "cut", "empty", "remove", "folder", "append"])
    content = bytearray(file.read_bytes())
    if how == "flip" and content:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        file.write_bytes(content)
    elif how == "cut":
        file.write_bytes(content[: rng.randrange(len(content) + 1)])
    elif how == "append":
        file.write_bytes(content + rng.randbytes(20))
    elif how == "empty":
        file.write_bytes(b"")
    elif how in ("remove", "folder"):
        file.unlink()
        if how == "folder":
            file.mkdir()
    return f"{how} {file.relative_to(run_dir)}"


def scores_of(run_dir: Path) -> tuple[str, object]:
    """ "scores", "warned" or "refused", and the scores."""
    result = invoke("evaluate", run_dir, "--json")
    if result.exit_code == 0:
        return "warned" if result.stderr else "scores", json.loads(result.stdout)
    assert_refused(result)
    return "refused", None


def assert_refused(result: object) -> None:
    exit_code, stderr = result.exit_code, result.stderr  # type: ignore[attr-defined]
    assert exit_code == 2, f"{exit_code}: {result.exception!r} {stderr}"  # type: ignore[attr-defined]
    assert len(stderr.splitlines()) == 1, stderr
    assert len(stderr) < 400, stderr


def assert_all_answers_are_right(folder: Path, count: int) -> Counter[str]:
    config, whole, longer = small_config(folder), folder / "whole", folder / "longer"
    assert invoke("train", config, f"run.dir={whole}").exit_code == 0
    assert invoke("train", config, f"run.dir={longer}", f"train.steps={STEPS}").exit_code == 0
    scores, last = scores_of(whole)[1], weights(longer)
    rng, counts = random.Random(SEED), Counter[str]()
    for number in range(count):
        run_dir = folder / f"damaged{number}"
        shutil.copytree(whole, run_dir)
        what = damage(run_dir, rng)
        try:
            answer, found = scores_of(run_dir)
            counts[f"evaluate: {answer}"] += 1
            assert answer != "scores" or found == scores
            resume = ["train", config, f"run.dir={run_dir}", "train.resume=auto", f"train.steps={STEPS}"]
            result = invoke(*resume)
            counts[f"resume: {result.exit_code}"] += 1
            if result.exit_code == 0:
                own = weights(run_dir)
                assert own.keys() == last.keys()
                assert all(own[name].tobytes() == last[name].tobytes() for name in last if name != "checkpoint")
            else:
                assert_refused(result)
        except AssertionError as error:
            raise AssertionError(f"folder {number}, {what}: {error}") from error
        shutil.rmtree(run_dir)
    return counts


def test_answers_from_some_damaged_folders_are_right(tmp_path: Path) -> None:
    counts = assert_all_answers_are_right(tmp_path, 8)
    assert counts["evaluate: scores"] > 0
    assert counts["resume: 0"] > 0


@pytest.mark.soak
def test_answers_from_many_damaged_folders_are_right(tmp_path: Path) -> None:
    print(dict(assert_all_answers_are_right(tmp_path, 200)))
