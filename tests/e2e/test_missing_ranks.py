"""Ranks of one run that do not find each other: one of them alone, as a launcher would start it."""

import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from command_line import alone, run, small_config


def start(rank: int, folder: Path, port: int, *overrides: str, **more: str) -> subprocess.CompletedProcess[str]:
    """One rank of two, which waits 2 s for the other unless it is told otherwise."""
    place = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = alone("train", small_config(folder), f"run.dir={folder}/run", *overrides)
    return run(command, **{"DISTSAM_START_TIMEOUT_S": "2", **place, **more})


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def said_by(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if line.startswith("distsam: ")]


def test_a_rank_that_does_not_come_is_named(tmp_path: Path) -> None:
    """Rank 0 waited for half an hour, and ended in a traceback that named nobody."""
    done = start(0, tmp_path, free_port())
    assert done.returncode == 2, done.stderr
    [line] = said_by(done)
    assert line.startswith("distsam: rank 1 of 2 did not arrive within the 2 s that rank 0 waited; ")
    assert line.endswith("or set DISTSAM_START_TIMEOUT_S to more")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


# Rank 1 of one machine is there to speak where the first rank of it, which is rank 0, is not.
@pytest.mark.parametrize("local_rank", ["0", "1"])
def test_a_first_rank_that_does_not_come_is_named_with_its_address(tmp_path: Path, local_rank: str) -> None:
    """Torch says that on sixty lines."""
    port = free_port()
    done = start(1, tmp_path, port, LOCAL_RANK=local_rank)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    says = f"distsam: rank 1: rank 0 of 2 cannot be reached at 127.0.0.1:{port} ([Errno 111] Connection refused)"
    assert line.startswith(says)
    assert not (tmp_path / "run").exists()


def test_a_first_rank_whose_port_is_taken_says_so(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        done = start(0, tmp_path, port)
    assert done.returncode == 2
    [line] = said_by(done)
    assert f"rank 0 of 2 cannot be reached at 127.0.0.1:{port} (" in line
    assert "EADDRINUSE" in line


def test_ranks_with_different_configs_all_end_with_2_before_they_train(tmp_path: Path) -> None:
    """Their collectives did not fit together: they hung, or trained on what was neither config."""
    port, patient = free_port(), {"DISTSAM_START_TIMEOUT_S": "300"}
    with ThreadPoolExecutor(2) as pool:
        # The second rank of one machine ends ten seconds later, for its launcher's sake; that of another does not.
        first = pool.submit(start, 0, tmp_path, port, **patient, GROUP_RANK="0")
        second = pool.submit(start, 1, tmp_path, port, "optim.method=base", **patient, GROUP_RANK="1")
        done, other = first.result(), second.result()
    assert (done.returncode, other.returncode) == (2, 2), done.stderr + other.stderr
    [line] = said_by(done)
    says = "distsam: rank 1 differs from rank 0: optim.method is 'base' there and 'sam+das' on rank 0; "
    assert line.startswith(says)
    assert not (tmp_path / "run").exists()
