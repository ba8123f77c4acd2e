"""The mirror of a run as TensorBoard's event files; the one importer of tensorboard."""

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

from distsam.errors import ArgumentError
from distsam.runs.numbers import is_finite
from distsam.runs.rows import STEP

try:
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.text.summary_v2 import text_pb
    from tensorboard.summary.writer.record_writer import RecordWriter
except ImportError as error:
    raise ArgumentError(
        "dir", f"tensorboard is not installed or cannot be imported ({error}); pip install 'distsam[tensorboard]'"
    ) from None

# How TensorBoard knows that files of this kind may begin again at an earlier step.
_VERSION = "brain.Event:2"


class TensorboardTracker:
    """Writes every row, as one event, into a file that TensorBoard reads; each is on its way to the disk before `log`
    returns. When that fails it says so once and the training goes on.

    TensorBoard's own writer does it in a thread, which prints a traceback where the disk is full; the time that a row
    takes, mostly its checksum, is the interpreter's in both cases.

    Args:
        folder: of the event files, created when it is missing.
        start_step: the step from which the run goes on: what older files in the folder hold of later steps is void, as
            in metrics.jsonl; of 0, all.
        config: shown as text; without secrets.
    """

    def __init__(self, folder: Path, start_step: int, config: Mapping[str, Any] | None = None) -> None:
        self._stream: BinaryIO | None = None
        self._last_step = start_step
        self._attempt(lambda: self._begin(folder, start_step, dict(config or {})))

    def _begin(self, folder: Path, start_step: int, config: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._stream = _new_file(folder)
        self._records = RecordWriter(self._stream)
        first = start_step + 1 if start_step else 0
        self._write(Event(file_version=_VERSION, wall_time=time.time()))
        self._write(self._event(first, session_log=SessionLog(status=SessionLog.START)))
        if config:
            text = json.dumps(config, indent=2, default=str)
            self._write(self._event(first, summary=text_pb("config", f"```json\n{text}\n```")))

    def log(self, row: Mapping[str, float | int | None]) -> None:
        """Write one row, without what is not finite."""
        if self._stream is None:
            return
        self._last_step = int(row[STEP] or 0)
        numbers = [
            Summary.Value(tag=key, simple_value=float(value))
            for key, value in row.items()
            if is_finite(value) and value is not None and key != STEP and abs(value) <= sys.float_info.max
        ]
        self._attempt(lambda: self._write(self._event(self._last_step, summary=Summary(value=numbers))))

    def alert(self, message: str) -> None:
        """Write one message, as a text at the step of the last row."""
        if self._stream is not None:
            self._attempt(lambda: self._write(self._event(self._last_step, summary=text_pb("alerts", message))))

    def close(self) -> None:
        """Close the file."""
        stream, self._stream = self._stream, None
        if stream is not None:
            self._attempt(stream.close)

    @staticmethod
    def _event(step: int, **content: Any) -> Event:
        return Event(step=step, wall_time=time.time(), **content)

    def _write(self, event: Event) -> None:
        self._records.write(event.SerializeToString())
        self._records.flush()

    def _attempt(self, call: Callable[[], object]) -> None:
        """Call; where it raises, this tracker takes no more."""
        try:
            call()
        except OSError as error:
            stream, self._stream = self._stream, None
            with suppress(OSError):
                if stream is not None:
                    stream.close()
            reason = error.strerror or " ".join(str(error).split())
            print(f"distsam: TensorBoard's file failed, the run goes on without it: {reason}", file=sys.stderr)


def _new_file(folder: Path) -> BinaryIO:
    """A file of a name that TensorBoard looks for; it reads those of a folder in the order of their names."""
    for number in count():
        path = (
            folder / f"events.out.tfevents.{time.time_ns() // 10**9:010d}.{socket.gethostname()}.{os.getpid()}.{number}"
        )
        try:
            # Unbuffered: what could not be written must not be tried again when the file is closed.
            return path.open("xb", buffering=0)
        except FileExistsError:
            continue
    raise AssertionError("unreachable")
