"""Signals that ask a run to end in good order."""

import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopSignals:
    """While it is entered, SIGTERM, SIGUSR1 and Ctrl-C call `on_stop` instead of ending the process.

    A second Ctrl-C ends the process at once.

    Args:
        on_stop: called in the main thread, between two instructions of it.

    Attributes:
        received: name of the first signal that came, or None.
    """

    def __init__(self, on_stop: Callable[[], None]) -> None:
        self.received: str | None = None
        self._on_stop = on_stop
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        for number in _SIGNALS:
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self.received = self.received or signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self._on_stop()
