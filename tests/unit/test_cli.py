"""Which rank says a mistake, and when: one line, whoever found it."""

import subprocess
import sys

import pytest

import distsam
from distsam.commands import messages
from distsam.errors import FirstRankMissing, InputError, SharedInputError, UserCodeError

FIRST = {"RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0", "WORLD_SIZE": "4"}
SECOND = {**FIRST, "RANK": "1", "LOCAL_RANK": "1"}
FIRST_OF_ANOTHER_MACHINE = {**FIRST, "RANK": "2", "GROUP_RANK": "1"}
SECOND_OF_ANOTHER_MACHINE = {**FIRST_OF_ANOTHER_MACHINE, "RANK": "3", "LOCAL_RANK": "1"}
UNDER_SRUN = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "4"}
SRUN_FIRST = {**UNDER_SRUN, "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
SRUN_SECOND = {**UNDER_SRUN, "SLURM_PROCID": "1", "SLURM_LOCALID": "1"}
SRUN_FIRST_OF_ANOTHER_MACHINE = {**UNDER_SRUN, "SLURM_PROCID": "2", "SLURM_LOCALID": "0"}


@pytest.mark.parametrize(
    ("place", "alone", "shared"),
    [
        ({}, "speaks", "speaks"),
        (FIRST, "speaks", "speaks"),
        (SECOND, "waits and speaks", "waits"),
        (FIRST_OF_ANOTHER_MACHINE, "speaks", "ends"),
        (SECOND_OF_ANOTHER_MACHINE, "waits and speaks", "ends"),
        (SRUN_FIRST, "speaks", "speaks"),
        (SRUN_SECOND, "waits", "waits"),
        (SRUN_FIRST_OF_ANOTHER_MACHINE, "speaks", "waits"),
    ],
)
@pytest.mark.parametrize("kind", ["alone", "shared"])
def test_a_mistake_is_said_by_the_rank_that_is_heard(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    place: dict[str, str],
    alone: str,
    shared: str,
    kind: str,
) -> None:
    """`waits`: torchrun kills the others of a machine once one has ended; so the silent one must not be the first."""
    for name in (*FIRST, *SRUN_FIRST):
        monkeypatch.delenv(name, raising=False)
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    waits: list[float] = []
    monkeypatch.setattr(messages.time, "sleep", waits.append)
    error = InputError("x: wrong") if kind == "alone" else SharedInputError("x: wrong")
    with pytest.raises(SystemExit) as ended, messages.mistakes_as_messages():
        raise error
    assert ended.value.code == 2
    expected = alone if kind == "alone" else shared
    rank = place.get("RANK") or place.get("SLURM_PROCID") or "0"
    line = "distsam: x: wrong\n" if rank == "0" else f"distsam: rank {rank}: x: wrong\n"
    assert capsys.readouterr().err == (line if "speaks" in expected else "")
    assert bool(waits) == ("waits" in expected)


@pytest.mark.parametrize(
    ("place", "error", "speaks"),
    [
        # Rank 0 is missing: the lowest rank that is there says it for all.
        (SRUN_SECOND, SharedInputError("x: wrong", speaker=1), True),
        (SRUN_FIRST_OF_ANOTHER_MACHINE, SharedInputError("x: wrong", speaker=1), False),
        # It cannot be reached: nobody knows who is there.
        (SRUN_SECOND, FirstRankMissing("x: wrong"), True),
        (SRUN_FIRST_OF_ANOTHER_MACHINE, FirstRankMissing("x: wrong"), True),
        ({**SRUN_SECOND, "SLURM_PROCID": "3"}, FirstRankMissing("x: wrong"), False),
    ],
)
def test_where_the_first_rank_is_missing_another_speaks(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    place: dict[str, str],
    error: InputError,
    speaks: bool,
) -> None:
    for name in (*FIRST, *SRUN_FIRST):
        monkeypatch.delenv(name, raising=False)
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(messages.time, "sleep", lambda seconds: None)
    with pytest.raises(SystemExit) as ended, messages.mistakes_as_messages():
        raise error
    assert ended.value.code == 2
    assert ("x: wrong" in capsys.readouterr().err) == speaks


def test_the_traceback_of_code_that_the_user_gave_comes_before_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    error = UserCodeError("task.target: mine:make raised ZeroDivisionError", "Traceback ...\nZeroDivisionError\n")
    with pytest.raises(SystemExit), messages.mistakes_as_messages():
        raise error
    assert capsys.readouterr().err.splitlines() == [
        "Traceback ...",
        "ZeroDivisionError",
        "distsam: task.target: mine:make raised ZeroDivisionError",
    ]


@pytest.mark.parametrize(
    "module", ["distsam.cli", "distsam.commands.table", "distsam.report.curves", "distsam.report.live_table"]
)
def test_what_can_be_typed_is_known_before_anything_heavy_is_loaded(module: str) -> None:
    heavy = ("torch", "numpy", "matplotlib", "pydantic", "omegaconf", "wandb")
    code = f"import sys, {module}; sys.exit(', '.join(set({heavy}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.stderr.strip() == ""


@pytest.mark.parametrize("output", ["| cat", "| true", ">&-"])
def test_the_end_is_quiet_whoever_reads(output: str) -> None:
    """Output is flushed by hand, because the process ends without taking Python down."""
    command = f"{sys.executable} -m distsam --version 2>&1 {output}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == (f"distsam {distsam.__version__}\n" if output == "| cat" else "")
    assert done.stderr == ""
