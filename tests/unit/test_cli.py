"""Which rank says a mistake, and when: one line, whoever found it."""

import pytest

from distsam import cli
from distsam.errors import InputError, SharedInputError

FIRST = {"RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0"}
SECOND = {"RANK": "1", "LOCAL_RANK": "1", "GROUP_RANK": "0"}
FIRST_OF_ANOTHER_MACHINE = {"RANK": "2", "LOCAL_RANK": "0", "GROUP_RANK": "1"}
SECOND_OF_ANOTHER_MACHINE = {"RANK": "3", "LOCAL_RANK": "1", "GROUP_RANK": "1"}
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
    monkeypatch.setattr(cli.time, "sleep", waits.append)
    error = InputError("x: wrong") if kind == "alone" else SharedInputError("x: wrong")
    with pytest.raises(cli.typer.Exit) as ended, cli._mistakes_as_messages():
        raise error
    assert ended.value.exit_code == 2
    expected = alone if kind == "alone" else shared
    rank = place.get("RANK") or place.get("SLURM_PROCID") or "0"
    line = "distsam: x: wrong\n" if rank == "0" else f"distsam: rank {rank}: x: wrong\n"
    assert capsys.readouterr().err == (line if "speaks" in expected else "")
    assert bool(waits) == ("waits" in expected)


def test_scores_that_are_not_finite_are_null_in_json() -> None:
    """A diverged run gave `Infinity`, which is no JSON."""
    assert cli._without_infinities({"a": float("inf"), "b": float("nan"), "c": None, "d": 0.5}) == {
        "a": None,
        "b": None,
        "c": None,
        "d": 0.5,
    }
