"""`distsam report`: one page that says what happened in runs."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from distsam.commands.messages import mistakes_as_messages
from distsam.errors import InputError

_EVERY_S = 5.0


def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or the folder of a comparison.")],
    *,
    output: Annotated[Path, typer.Option("-o", "--output", help="Page to write.")] = Path("report.html"),
    figures: Annotated[
        Path | None, typer.Option("--figures", help="Folder that gets every figure as PNG and SVG too.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Write it again until the runs have ended.")] = False,
    every: Annotated[
        float | None, typer.Option("--every", min=1, help="With --watch: seconds between two pages; 5 without it.")
    ] = None,
) -> None:
    """Write one self-contained HTML page: scores, norm deviation, what moves it, cost, settings of runs."""
    with mistakes_as_messages():
        from distsam.report.written import follow, write_figures, write_report
        from distsam.train.config_file import read_yaml

        if every is not None and not watch:
            raise InputError(f"--every: {every:g} is for --watch alone; give both, or neither")
        every_s = every or _EVERY_S

        def write() -> dict[str, Any]:
            return write_report(runs, output, read_yaml, every_s if watch else None)

        try:
            data = follow(write, every_s, lambda line: print(f"{output}: {line}", flush=True)) if watch else write()
        except KeyboardInterrupt:
            data = write_report(runs, output, read_yaml)
        for run in data["runs"]:
            if run["missing"]:
                print(f"distsam: {run['path']}: {'; '.join(run['missing'])}", file=sys.stderr)
        print(f"{output}: written ({output.stat().st_size / 1024:.0f} KiB); {data['sentence']}")
        if figures is not None:
            print(f"{figures}: {write_figures(data, figures)} figures, each as PNG and SVG")
