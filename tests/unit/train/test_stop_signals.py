import os
import signal

import pytest

from distsam.train.stop_signals import StopSignals


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_asks_to_stop_and_is_remembered(name: str) -> None:
    before = signal.getsignal(signal.Signals[name])
    calls: list[int] = []
    with StopSignals(lambda: calls.append(1)) as signals:
        os.kill(os.getpid(), signal.Signals[name])
    assert (calls, signals.received) == ([1], name)
    assert signal.getsignal(signal.Signals[name]) is before


def test_a_second_ctrl_c_ends_at_once() -> None:
    with StopSignals(lambda: None) as signals:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signals.received == "SIGINT"
