"""Benchmarks that build the parts of a run by hand find them: telemetry.py was broken twice by a new name."""

import re
import sys

from command_line import ROOT, run


def test_the_benchmark_of_telemetry_prints_a_row() -> None:
    script = ROOT / "tests" / "benchmarks" / "telemetry.py"
    options = ["--networks", "many", "--methods", "sam", "--every", "2", "--blocks", "2", "--limit", "9"]
    done = run([sys.executable, str(script), *options])
    assert done.returncode == 0, done.stderr
    assert re.search(r"(?m)^many\S*\s+\S+ +\d", done.stdout), done.stdout
