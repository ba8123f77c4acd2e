"""`distsam report`: every number of the page is one of the run folders' files, and what is missing is said."""

import json
import re
import subprocess
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import LIMIT_S, alone, environment, invoke, small_config

from distsam.runs.rows import STEP, read_rows

PLAIN = ["optim.base=sgd", "optim.lr=0.001", "optim.weight_decay=0.1", "network.init_norms=[1.0,2.0,3.0]"]


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A run of sam+das on plain sgd, and one on adam."""
    folder = tmp_path_factory.mktemp("reported")
    config = small_config(folder)
    for name, keys in (("plain", PLAIN), ("adam", [])):
        result = invoke("train", config, f"run.dir={folder / name}", *keys)
        assert result.exit_code == 0, result.output
    return [folder / "plain", folder / "adam"]


class PageParser(HTMLParser):
    """What a browser would load, the data, the labels and tables of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.svg_texts: list[str] = []
        self.data: dict[str, Any] = {}
        self._open: list[str] = []
        self._is_data = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        self._is_data = tag == "script" and ("id", "data") in attrs
        self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._is_data = False
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self._is_data:
            self.data = json.loads(data)
        elif self._open and self._open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data
        elif self._open and self._open[-1] in ("text", "tspan"):
            self.svg_texts.append(data)


def page_of(*arguments: object, target: Path) -> PageParser:
    result = invoke("report", *arguments, "-o", target)
    assert result.exit_code == 0, result.output
    return PageParser(target.read_text(encoding="utf-8"))


def test_every_number_of_the_page_equals_the_files_of_its_runs(two_runs: list[Path], tmp_path: Path) -> None:
    page = page_of(*two_runs, target=tmp_path / "report.html")
    assert [run["name"] for run in page.data["runs"]] == ["plain", "adam"]
    for run, folder in zip(page.data["runs"], two_runs, strict=True):
        rows = {row[STEP]: row for row in read_rows(folder / "metrics.jsonl")}
        summary = json.loads((folder / "summary.json").read_text())
        num_points = 0
        for key, points in run["series"].items():
            expected = {step: row[key] for step, row in rows.items() if row.get(key) is not None}
            assert dict(zip(points["steps"], points["values"], strict=True)) == expected, key
            num_points += len(expected)
        # Nothing that the file holds is left out either.
        assert num_points == sum(
            value is not None for row in rows.values() for key, value in row.items() if key != STEP
        )
        assert run["numbers"] == {key: value for key, value in summary.items() if "/" in key}
        assert all(summary[key] == value for key, value in run["summary"].items())
        assert all(summary[key] == value for key, value in {**run["environment"], **run["memory"]}.items())
        assert run["memory"]["peak_memory_bytes"] > 10 * 2**20
        assert run["config"] == yaml.safe_load((folder / "config.yaml").read_text())
        last = rows[max(rows)]
        assert run["headline"]["deviation"] == last["balance/network/norm_deviation"]
        assert run["headline"]["first_deviation"] == rows[0]["balance/network/norm_deviation"]
        assert run["headline"]["score"] == summary["heldout/r2"]
        assert run["last_step"] == max(rows)
        assert run["missing"] == []


def test_the_tables_and_figures_show_the_numbers_of_the_data(two_runs: list[Path], tmp_path: Path) -> None:
    """The table behind a figure is made from what is drawn, so both are held by it."""
    page = page_of(two_runs[0], target=tmp_path / "report.html")
    rows = read_rows(two_runs[0] / "metrics.jsonl")
    by_header = {tuple(table[0]): table[1:] for table in page.tables}
    deviation = page.tables[0]
    assert deviation[0][0] == "step"
    assert deviation[1:] == [[str(row[STEP]), f"{row['balance/network/norm_deviation']:.6g}"] for row in rows]
    norms = by_header["step", "factor_0", "factor_1", "factor_2"]
    for cells, row in zip(norms, rows, strict=True):
        squares = [row[f"balance/network/core_norm_sq/factor_{k}"] for k in range(3)]
        assert cells == [str(row[STEP]), *(f"{square**0.5:.6g}" for square in squares)]
    results = {cells[0]: cells[1] for table in page.tables if table[0] == ["", "plain"] for cells in table}
    summary = json.loads((two_runs[0] / "summary.json").read_text())
    assert results["heldout/r2"] == f"{summary['heldout/r2']:.4g}"


def test_the_parts_of_the_rate_add_up_and_follow_their_laws(two_runs: list[Path], tmp_path: Path) -> None:
    page = page_of(*two_runs, target=tmp_path / "report.html")
    plain, adam = (run["attribution"]["network"] for run in page.data["runs"])
    rows = {row[STEP]: row for row in read_rows(two_runs[0] / "metrics.jsonl")}
    assert set(plain["terms"]) == {"measured", "rescale", "ascent (SAM)", "weight decay", "discrete steps", "rest"}
    for i, step in enumerate(plain["steps"]):
        at = {name: values[i] for name, values in plain["terms"].items()}
        row = {key.removeprefix("balance/network/"): value for key, value in rows[step].items()}
        assert at.pop("measured") == row["measured_rate"]
        assert sum(at.values()) == pytest.approx(row["measured_rate"], rel=1e-12)
        # A transcription of theory: K = 3, rho = 0.05, eta = 0.001, w = 0.1.
        first = 4 * 0.05 * 3 * row["covariance"] / row["sam/grad_norm"]
        assert at["rescale"] == pytest.approx(row["predicted_rate"] - first, rel=1e-9)
        assert at["ascent (SAM)"] == pytest.approx(row["predicted_rate_exact"] - at["rescale"], rel=1e-9)
        before = row["norm_deviation"] - 0.001 * row["measured_rate"]
        assert at["weight decay"] == pytest.approx(-0.4 * before, rel=1e-9)
        assert at["discrete steps"] == pytest.approx(2 * 0.001 * 3 * row["covariance"], rel=1e-12)
        # What has no term is of second order in eta, w and rho together.
        assert abs(at["rest"]) < 0.01 * abs(row["measured_rate"])
    assert set(adam["terms"]) == {"measured", "rescale", "rest"}
    assert any("No law is known for adam" in note for note in adam["notes"])


def test_a_page_loads_nothing_and_every_axis_has_a_unit(two_runs: list[Path], tmp_path: Path) -> None:
    page = page_of(*two_runs, target=tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    # Inside an SVG a reference is to another part of it, or a picture that is in the page.
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in page.links)
    assert not re.search(r"@import|url\((?!#)", text)
    num_figures = text.count("<figure ")
    assert num_figures >= 12
    assert sum("[" in words and "]" in words for words in page.svg_texts) == 2 * num_figures
    assert len(text.encode()) < 500_000
    for words in ("prefers-color-scheme: dark", "@media print", 'name="viewport"'):
        assert words in text


def test_names_and_settings_that_hold_markup_are_text(two_runs: list[Path], tmp_path: Path) -> None:
    named = copied(two_runs[0], tmp_path / "<img src=x onerror=alert(1)>")
    config = (named / "config.yaml").read_text()
    evil = "</script><script>alert(2)</script>"
    (named / "config.yaml").write_text(config.replace("project: distsam", f"project: {evil}"))
    page = page_of(named, two_runs[1], target=tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert "x" not in page.links
    assert page.data["runs"][0]["name"] == "<img src=x onerror=alert(1)>"
    assert page.data["runs"][0]["config"]["wandb"]["project"] == evil


def test_figures_are_written_as_png_and_svg(two_runs: list[Path], tmp_path: Path) -> None:
    result = invoke("report", two_runs[0], "-o", tmp_path / "r.html", "--figures", tmp_path / "figures")
    assert result.exit_code == 0, result.output
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    keys = re.findall(r'<figure id="([^"]+)"', page)
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == sorted(
        f"{key}.{form}" for key in keys for form in ("png", "svg")
    )
    assert (tmp_path / "figures" / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert "Training loss" in (tmp_path / "figures" / "loss.svg").read_text()


def copied(run: Path, target: Path, *, rows: str | None = None, without: tuple[str, ...] = ()) -> Path:
    target.mkdir()
    for name in {"config.yaml", "metrics.jsonl", "summary.json"} - set(without):
        (target / name).write_bytes((run / name).read_bytes())
    if rows is not None:
        (target / "metrics.jsonl").write_text(rows)
    return target


def test_a_killed_run_is_shown_and_what_is_missing_is_said(two_runs: list[Path], tmp_path: Path) -> None:
    lines = (two_runs[0] / "metrics.jsonl").read_text().splitlines()
    killed = copied(
        two_runs[0], tmp_path / "killed", rows="\n".join(lines[:3]) + '\n{"train/st', without=("summary.json",)
    )
    result = invoke("report", killed, "-o", tmp_path / "r.html")
    assert result.exit_code == 0, result.output
    run = PageParser((tmp_path / "r.html").read_text(encoding="utf-8")).data["runs"][0]
    assert run["state"] == "unfinished"
    assert run["last_step"] == json.loads(lines[2])[STEP]
    assert run["numbers"]["heldout/r2"] == json.loads(lines[2])["heldout/r2"]
    [said] = result.stderr.splitlines()
    assert "did not reach its end" in said
    assert "1 damaged line of metrics.jsonl" in said


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ({"metrics.jsonl": b"\x00\xff" * 50}, "holds no rows"),
        ({"summary.json": b'{"steps": "many"}'}, "summary.json is damaged"),
        ({"summary.json": b"[" * 100_000}, "summary.json is damaged"),
        ({"config.yaml": b"a: [1"}, "config.yaml cannot be read"),
        ({"config.yaml": b"optim: 3\ntrain: []\n"}, ""),
        ({"metrics.jsonl": b'{"train/step": 1, "train/loss": 1' + b"0" * 400 + b"}"}, "earlier end|^$"),
        ({"metrics.jsonl": None}, "metrics.jsonl cannot be read"),
        ({"config.yaml": None, "metrics.jsonl": b'{"train/step": 0, "train/loss": "x"}'}, "config.yaml cannot be read"),
    ],
)
def test_a_damaged_run_is_shown_with_what_is_left(
    two_runs: list[Path], tmp_path: Path, damage: dict[str, bytes | None], says: str
) -> None:
    run = copied(
        two_runs[0], tmp_path / "damaged", without=tuple(name for name, text in damage.items() if text is None)
    )
    for name, content in damage.items():
        if content is not None:
            (run / name).write_bytes(content)
    result = invoke("report", run, "-o", tmp_path / "r.html")
    assert result.exit_code == 0, result.output
    assert re.search(says, result.stderr)
    assert len(result.stderr.splitlines()) <= 1
    page = PageParser((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert len(page.data["notes"]) == len(page.data["runs"][0]["missing"])


def test_runs_of_different_data_are_said_to_be_so(two_runs: list[Path], tmp_path: Path) -> None:
    same = page_of(*two_runs, target=tmp_path / "same.html")
    assert not any("different data" in note for note in same.data["notes"])
    other = copied(two_runs[1], tmp_path / "other")
    summary = json.loads((other / "summary.json").read_text())
    (other / "summary.json").write_text(json.dumps({**summary, "data_sha256": "0" * 64}))
    page = page_of(two_runs[0], other, target=tmp_path / "different.html")
    assert sum("different data" in note for note in page.data["notes"]) == 1


def test_mistakes_are_one_line_and_nothing_is_written(two_runs: list[Path], tmp_path: Path) -> None:
    mine = tmp_path / "mine.html"
    mine.write_text("<p>my own</p>")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "compare.json").write_text("{")
    fresh = tmp_path / "fresh.html"
    for arguments, says in (
        ([tmp_path / "empty", "-o", fresh], "is no folder of a run"),
        ([tmp_path / "nowhere", "-o", fresh], "is no folder of a run"),
        ([two_runs[0], two_runs[0], "-o", fresh], "given twice"),
        ([two_runs[0], "-o", mine], "is no report of distsam"),
        ([two_runs[0], "-o", tmp_path], "is a folder"),
        ([two_runs[0], "-o", tmp_path / "no" / "r.html"], "is no folder"),
        ([two_runs[0], "-o", "/proc/r.html"], "cannot be written"),
        ([tmp_path / "broken", "-o", fresh], "is damaged"),
        ([two_runs[0], "-o", fresh, "--every", "3"], "for --watch alone"),
        ([two_runs[0], "-o", tmp_path / "r.html", "--figures", mine], "cannot be made"),
    ):
        result = invoke("report", *arguments)
        assert result.exit_code == 2, arguments
        assert says in result.stderr
        assert len(result.stderr.splitlines()) == 1
    assert mine.read_text() == "<p>my own</p>"
    assert not fresh.exists()


def test_a_watched_page_follows_its_run_to_the_end(tmp_path: Path) -> None:
    """While the run goes on the page loads itself anew; the last one does not, and has the run's end."""
    folder, target = tmp_path / "run", tmp_path / "r.html"
    keys = ["train.steps=2000", "train.log_every=20", "train.checkpoint_every=1000"]
    command = alone("train", small_config(tmp_path), f"run.dir={folder}", *keys)
    training = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    watching = None
    try:
        _wait_for(lambda: (folder / "metrics.jsonl").exists() and read_rows(folder / "metrics.jsonl"))
        watch = alone("report", folder, "-o", target, "--watch", "--every", "1")
        watching = subprocess.Popen(watch, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        _wait_for(target.exists)
        during = target.read_text(encoding="utf-8")
        assert training.wait(LIMIT_S) == 0
        out, errors = watching.communicate(timeout=LIMIT_S)
    finally:
        for process in filter(None, (training, watching)):
            process.kill()
            process.communicate()
    assert watching.returncode == 0, errors
    assert "location.reload" in during
    assert PageParser(during).data["runs"][0]["state"] == "running"
    after = target.read_text(encoding="utf-8")
    assert "location.reload" not in after
    run = PageParser(after).data["runs"][0]
    assert (run["state"], run["last_step"]) == ("ended", 2000)
    assert b"run at step" in out


def _wait_for(is_there: Any) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not is_there():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def compared() -> dict[str, Any]:
    """What `distsam compare` writes, of three arms and two seeds; `wd` has neither an interval nor a target."""
    paths = {"steps": [0, 10, 20], "deviation": {"0": [9.0, 4.0, 1.0], "1": [9.0, 6.0, None]}}
    arm = {"overrides": [], "tuned": {"optim.lr": 0.01}, "mean": 0.7, "interval": [0.6, 0.8], "scores": {"0": 0.65}}
    arm |= {"step_s": 0.01, "target_s": 3.5, "reached": 2, "deviation": 1.5, "paths": paths}
    lacking = {**arm, "interval": None, "target_s": None, "reached": 0, "paths": {"steps": [], "deviation": {}}}
    differences = [
        {"arm": "sam", "against": "base", "mean": 0.04, "interval": [0.01, 0.07], "p": 0.01, "p_corrected": 0.02},
        {"arm": "wd", "against": "base", "mean": -0.01, "interval": None, "p": None, "p_corrected": None},
    ]
    return {
        "goal": {"key": "validation/r2", "higher_is_better": True},
        "score": "heldout/r2",
        "notes": ["wd: no heldout/r2 for seed 1"],
        "budget": {"unit": "steps", "amount": 20},
        "seeds": [0, 1],
        "arms": {"base": arm, "sam": {**arm, "mean": 0.74}, "wd": lacking},
        "differences": differences,
        "verdict": "sam is better than base by 0.04.",
    }


def test_a_comparison_is_shown_with_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "compare.json").write_text(json.dumps(compared()))
    page = page_of(tmp_path, target=tmp_path / "r.html")
    assert page.data["comparison"] == compared()
    assert page.data["sentence"] == "sam is better than base by 0.04."
    assert ">+0.04<" in (tmp_path / "r.html").read_text(encoding="utf-8")
    paths, arms, differences = page.tables
    # At step 20 one seed has no number: there is no band.
    assert [row[:4] for row in paths[1:]] == [["0", "9", "9", "9"], ["10", "4", "5", "6"]]
    assert arms[0][1] == "heldout/r2, mean"
    assert page.data["notes"] == ["wd: no heldout/r2 for seed 1"]
    cells = {row[0]: row for row in arms}
    assert cells["sam"] == ["sam", "0.74", "0.6 to 0.8", "0.01", "3.5", "2 of 2", "1.5", "optim.lr=0.01"]
    assert cells["wd"][2:6] == ["-", "0.01", "-", "0 of 2"]
    assert differences[1:] == [
        ["sam", "base", "0.04", "0.01 to 0.07", "0.01", "0.02"],
        ["wd", "base", "-0.01", "-", "-", "-"],
    ]


def test_a_comparison_that_lacks_parts_is_shown_without_them(tmp_path: Path) -> None:
    (tmp_path / "compare.json").write_text('{"arms": {"base": 3, "sam": {}}, "differences": [7, {"arm": "sam"}]}')
    page = page_of(tmp_path, target=tmp_path / "r.html")
    assert [row[:3] for row in page.tables[0][1:]] == [["base", "-", "-"], ["sam", "-", "-"]]
