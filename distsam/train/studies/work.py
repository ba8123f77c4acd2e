"""Doing the runs of a study: by this process, and by others beside it that share its folder and nothing else."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from distsam.errors import InputError
from distsam.runs.study import StudyFolder
from distsam.train.studies.jobs import Interrupted, Job, claimed, one_line, outcome, run_job

_WAIT_S = 0.3
INTERRUPTED = 130


class WorkerEnded(Exception):
    """A worker has ended before the study was over, and has said why.

    Args:
        code: its exit code.
    """

    def __init__(self, code: int) -> None:
        super().__init__(f"a worker has ended with exit code {code}")
        self.code = code


class Study(Protocol):
    """A question that is answered by many runs; all that is known of it lies in its folder."""

    folder: StudyFolder

    def todo(self) -> Sequence[Job] | None:
        """Runs that can be done now, in their order, held by others or not; None once none is left to do."""
        ...

    def prepare(self, job: Job) -> Job:
        """The job, which this process holds now, as it is to be done."""
        ...

    def refuses(self, job: Job, mistake: InputError) -> bool:
        """Whether the study goes on without this run, which cannot be trained; it has set that down then."""
        ...

    def report(self, job: Job) -> str:
        """One line on a run that has ended just now."""
        ...


def work(study: Study, say: Callable[[str], None] = print) -> None:
    """Do runs of the study until none is left. Others may do the same at the same time, on any machine.

    Args:
        say: takes a line for each run that has ended.

    Raises:
        InputError: a run cannot be trained; the message names it.
        Interrupted: a signal stopped it.
    """
    while (jobs := study.todo()) is not None:
        if not any(_done_by_us(study, job, say) for job in jobs):
            time.sleep(_WAIT_S)  # what is left, others are doing


def work_together(study: Study, workers: int, say: Callable[[str], None] | None = print) -> None:
    """Do the study by `workers` processes of this machine.

    Args:
        say: takes a line for each run that has ended; None: nothing is printed.

    Raises:
        InputError, Interrupted: see `work`.
        WorkerEnded: one of several processes has ended early, by a signal or a mistake.
    """
    if workers == 1:
        work(study, say or (lambda line: None))
        return
    # With its stdin a worker notices that this process is gone, however it went, and goes too.
    command = [sys.executable, "-m", "distsam", "work", str(study.folder.path), "--tied"]
    output = None if say else subprocess.DEVNULL
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output) for _ in range(workers)]
    try:
        codes = _wait_for(processes)
    except KeyboardInterrupt:
        codes = [INTERRUPTED]
    finally:
        _end(processes)
    if any(codes):
        raise WorkerEnded(next(code for code in codes if code))


def end_with_parent() -> None:
    """Let this process end as soon as the one that started it does: its standard input ends then."""

    def watch() -> None:
        sys.stdin.buffer.read()
        # A run that is cut off here goes on from its last checkpoint, like any other that was killed.
        os._exit(INTERRUPTED)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def _wait_for(processes: list[subprocess.Popen[bytes]]) -> list[int]:
    """Exit codes once all have ended well, or one has not."""
    while True:
        codes = [process.poll() for process in processes]
        if any(codes) or None not in codes:
            return [code or 0 for code in codes]
        time.sleep(_WAIT_S)


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    """Let those that still run save what they do, and wait for them."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    for process in processes:
        process.wait()
        if process.stdin is not None:
            process.stdin.close()


def _done_by_us(study: Study, job: Job, say: Callable[[str], None]) -> bool:
    with claimed(study.folder, job) as is_ours:
        # Another process may have ended it since it was listed.
        if not is_ours or outcome(job) is not None:
            return False
        job = study.prepare(job)
        try:
            run_job(study.folder, job)
        except Interrupted:
            raise
        except InputError as mistake:
            if not study.refuses(job, mistake):
                raise one_line(mistake, job.label) from None
        say(study.report(job))
        return True
