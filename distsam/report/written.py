"""From run folders to files: the page, its figures, and a page that follows a run."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from distsam.errors import InputError
from distsam.report.drawing import figure_files
from distsam.report.page import MARK, figures_of, page_html
from distsam.report.page_data import page_data
from distsam.report.run_facts import COMPARISON, ReadConfig, read_runs
from distsam.runs.atomic import write_atomically

_SEARCHED_BYTES = 1000


def write_report(
    paths: Sequence[Path], target: Path, read_config: ReadConfig, reload_s: float | None = None
) -> dict[str, Any]:
    """Write the page of the runs in `paths` to `target`, whole or not at all.

    Args:
        paths: run folders, or the folder of a comparison, which holds a compare.json.
        target: the page; a file that is there must be an earlier report.
        read_config: gives the sections of a config.yaml.
        reload_s: while a run goes on, the page loads itself anew after so many seconds.

    Returns:
        The data of the page.

    Raises:
        InputError: a path holds no run; `target` cannot be written, or is somebody's other file.
    """
    check_target(target)
    comparisons = [path for path in paths if (path / COMPARISON).is_file()]
    if len(comparisons) > 1:
        raise InputError(f"{comparisons[1]}: is a second comparison; report one at a time")
    comparison = _comparison(comparisons[0] / COMPARISON) if comparisons else None
    runs = read_runs([path for path in paths if path not in comparisons], read_config)
    data = page_data(runs, comparison)
    goes_on = any(run.state == "running" for run in runs)
    _write(target, page_html(data, reload_s if goes_on else None))
    return data


def write_figures(data: Mapping[str, Any], folder: Path) -> int:
    """Write every figure of the page into `folder` as PNG and SVG; the number of figures.

    Raises:
        InputError: the folder cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--figures: {folder} cannot be made ({error.strerror}); choose another folder") from None
    count = 0
    for figure in figures_of(data):
        count += 1
        for name, content in figure_files(figure).items():
            _write(folder / name, lambda stream, content=content: stream.write(content), "--figures")
    return count


def follow(write: Callable[[], Mapping[str, Any]], every_s: float, say: Callable[[str], None]) -> Mapping[str, Any]:
    """Call `write` every `every_s` seconds until none of its runs goes on; the last page is of their ends."""
    while True:
        data = write()
        running = [run for run in data["runs"] if run["state"] == "running"]
        if not running:
            return data
        say(", ".join(f"{run['name']} at step {run['last_step']}" for run in running))
        time.sleep(every_s)


def check_target(target: Path) -> None:
    """Raise where `target` may not be written over.

    Raises:
        InputError: it is a folder, lies in none, or is a file that no report has written.
    """
    if target.is_dir():
        raise InputError(f"--output: {target} is a folder; give a file, such as {target / 'report.html'}")
    if not target.parent.is_dir():
        raise InputError(f"--output: {target.parent} is no folder; make it, or choose another file")
    if target.exists() and not _is_ours(target):
        raise InputError(f"--output: {target} exists and is no report of distsam; choose another name")


def _is_ours(target: Path) -> bool:
    try:
        with target.open("rb") as stream:
            return MARK.encode() in stream.read(_SEARCHED_BYTES)
    except OSError:
        return False


def _write(target: Path, content: Any, option: str = "--output") -> None:
    try:
        write_atomically(target, content)
    except OSError as error:
        raise InputError(f"{option}: {target} cannot be written ({error.strerror}); choose another place") from None


def _comparison(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or not isinstance(content.get("arms"), dict):
        raise InputError(f"{file}: is damaged; run distsam compare again to write it")
    return content
