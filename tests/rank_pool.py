"""Processes that stay: W ranks with one process group, reused by every test (a fresh spawn costs ten times more)."""

import multiprocessing
import os
import socket
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

TIMEOUT_S = 300


class RankPool:
    """Runs a function on every rank of a kept world and gives back what each returned.

    Functions and arguments travel by pickle: functions of importable modules, plain Python and numpy values.
    """

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        context = multiprocessing.get_context("spawn")
        port = _free_port()
        self._ends: list[Connection] = []
        self._processes = []
        for rank in range(world_size):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(rank, world_size, port, there), daemon=True)
            process.start()
            self._ends.append(here)
            self._processes.append(process)

    def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Any]:
        """function(*args, **kwargs) on every rank; results by rank. A rank's exception is raised here."""
        for end in self._ends:
            end.send((function, args, kwargs))
        answers = []
        for rank, end in enumerate(self._ends):
            if not end.poll(TIMEOUT_S):
                self.close()
                raise TimeoutError(f"rank {rank} did not answer in {TIMEOUT_S} s; the others said {answers}")
            answers.append(end.recv())
        failures = [f"rank {rank}:\n{text}" for rank, (is_ok, text) in enumerate(answers) if not is_ok]
        if failures:
            raise AssertionError("\n".join(map(str, failures)))
        return [value for _, value in answers]

    def close(self) -> None:
        """End every process."""
        for process in self._processes:
            process.kill()
            process.join()


def _serve(rank: int, world_size: int, port: int, end: Connection) -> None:
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_RANK=str(rank),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        OMP_NUM_THREADS="1",
    )
    import torch

    from distsam.sharding import open_world

    torch.set_num_threads(1)
    open_world(device_of(world_size))
    warnings.simplefilter("error")
    while True:
        function, args, kwargs = end.recv()
        try:
            end.send((True, function(*args, **kwargs)))
        except Exception:
            end.send((False, traceback.format_exc()))


def device_of(world_size: int) -> str:
    """nccl where every rank has a GPU of its own, else gloo."""
    import torch

    return "cuda" if torch.cuda.device_count() >= world_size else "cpu"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
