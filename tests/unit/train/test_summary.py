import json
from pathlib import Path

import pytest
from distsam.train.summary import read_summary, versions, write_summary


def test_a_summary_is_read_as_it_was_written_but_for_what_is_not_finite(tmp_path: Path) -> None:
    file = tmp_path / "summary.json"
    write_summary(file, {"steps": 3, "heldout/r2": float("nan"), "core_names": {"network": ["central"]}})
    assert read_summary(file, {"steps": 3}) == {"steps": 3, "heldout/r2": None, "core_names": {"network": ["central"]}}


@pytest.mark.parametrize("content", [None, "", "[]", json.dumps({"steps": 2}), json.dumps({})])
def test_no_summary_of_this_step_is_none(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "summary.json"
    if content is not None:
        file.write_text(content)
    assert read_summary(file, {"steps": 3}) is None


def test_the_versions_name_what_gives_the_data() -> None:
    assert {"python", "torch", "distsam", "numpy", "tensorly"} == set(versions())
