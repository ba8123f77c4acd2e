"""How runs stand, as lines of text."""

from collections.abc import Iterator, Sequence
from math import log

from distsam.report.status import NetworkBalance, RunStatus

_BLOCKS = "▁▂▃▄▅▆▇█"
# Below this a change is called none: the arrow is to be looked at.
_STILL = 0.005


def status_line(status: RunStatus) -> str:
    """All of it in one line, for a log."""
    parts = [f"{status.path}: {state_text(status)}", *progress_lines(status), *score_lines(status)]
    if status.balance is not None:
        parts += [f"norm deviation {deviation_text(status)}", *filter(None, [core_text(status.balance)])]
    return printable("  ".join([*parts, *record_lines(status)]))


def state_text(status: RunStatus) -> str:
    """The state, with what explains it where that is not what everybody expects."""
    return status.state if status.is_live else f"{status.state} ({status.detail})"


def progress_lines(status: RunStatus) -> Iterator[str]:
    """Step of steps, speed and time left; how long nothing came, where that is longer than it should be."""
    if status.step is None:
        yield "no row yet"
        return
    yield f"step {step_text(status)}"
    if status.steps_per_s is not None:
        yield f"{number(status.steps_per_s)} steps/s"
    if status.left_s is not None:
        yield f"{duration(status.left_s)} left"
    if status.is_live and status.left_s == 0.0 and status.silent_s is not None:
        yield f"last row {duration(status.silent_s)} ago"


def step_text(status: RunStatus) -> str:
    """Step of steps."""
    if status.step is None:
        return "-"
    return f"{status.step}/{status.steps}" if status.steps else str(status.step)


def score_lines(status: RunStatus) -> Iterator[str]:
    """The loss, and the goal's score on every part of the data."""
    if status.step is not None:
        yield f"loss {number(status.loss)}"
    for label, value in status.scores:
        yield f"{label} {number(value)}"


def deviation_text(status: RunStatus) -> str:
    """The largest norm deviation, how it moves, and, of several networks, whose it is."""
    balance = status.balance
    if balance is None:
        return "-"
    of = f"in {balance.network}, the largest of {status.num_networks}" if status.num_networks > 1 else ""
    return " ".join(filter(None, [number(balance.deviation), change_text(balance.change), of]))


def change_text(change: float | None) -> str:
    """An arrow and the change in per cent."""
    if change is None:
        return ""
    arrow = "→" if abs(change) < _STILL else "↗" if change > 0 else "↘"
    return f"{arrow} {100 * change:+.3g}%" if abs(change) < 10 else f"{arrow} x{1 + change:.3g}"


def core_text(balance: NetworkBalance) -> str:
    """The largest core and its part of the squared norm."""
    return "" if balance.core is None else f"{balance.core} holds {balance.share:.1%}"


def record_lines(status: RunStatus) -> Iterator[str]:
    """Alerts, if bounds are watched, and the last checkpoint."""
    if status.alerts is not None:
        since = "" if status.alert_step is None else f", last from step {status.alert_step}"
        yield f"alerts {status.alerts}{since}"
    yield "no checkpoint" if status.checkpoint is None else f"checkpoint {status.checkpoint}"


def sparkline(values: Sequence[float], width: int) -> str:
    """The course of numbers in `width` characters or fewer; on a logarithmic scale where they span a decade."""
    count = min(width, len(values))
    picked = [values[round(i * (len(values) - 1) / max(1, count - 1))] for i in range(count)]
    if not picked:
        return ""
    least = min((value for value in picked if value > 0), default=0.0)
    if least > 0 and max(picked) > 10 * least:
        picked = [log(max(value, least)) for value in picked]
    low, high = min(picked), max(picked)
    steps = len(_BLOCKS) - 1
    return "".join(_BLOCKS[round(steps * (v - low) / (high - low)) if high > low else 0] for v in picked)


def duration(seconds: float) -> str:
    """Seconds as people say them: 12 s, 3 min 05 s, 2 h 10 min, 3 d 4 h."""
    whole = round(min(seconds, 1e9))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def number(value: float | None) -> str:
    """Four digits; a dash where there is no finite number."""
    return "-" if value is None else f"{value:.4g}"


def printable(text: str) -> str:
    """`text` on one line without what would move a terminal's cursor: names come from files that others may write."""
    return "".join(char if char.isprintable() else "?" for char in text)
