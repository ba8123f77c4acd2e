"""What a person should see while a run goes on: the balance of a network beyond bounds that the config sets."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from distsam.runs.rows import STEP, Row


class Bounds(NamedTuple):
    """Of a network's balance; None for one that is not watched.

    Args:
        deviation: largest norm deviation, in parameter units to the fourth power.
        jump: largest factor by which the deviation may grow from one logged row to the next.
        share: largest part of the sum of squared core norms that one core may hold, 0 to 1.
    """

    deviation: float | None = None
    jump: float | None = None
    share: float | None = None


class Alerts:
    """Looks at each row as it comes, without a collective: rows are on rank 0 alone.

    Args:
        bounds: that are watched.
        networks: by name.
    """

    def __init__(self, bounds: Bounds, networks: Sequence[str]) -> None:
        self._bounds, self._networks = bounds, tuple(networks)
        self._is_watching = any(bound is not None for bound in bounds)
        self._last: dict[str, float] = {}
        self._told: set[tuple[str, str]] = set()

    def look(self, row: Row) -> list[str]:
        """Lines for people on what went beyond a bound with this row, one when it goes and none while it stays there.

        Adds `balance/<network>/alerts`, the number of bounds that the network is beyond, to a row that has its balance.
        """
        if not self._is_watching:
            return []
        norms = {} if self._bounds.share is None else _norms_by_network(row)
        return [line for net in self._networks for line in self._look_at(net, row, norms.get(net, {}))]

    def _look_at(self, network: str, row: Row, norms: Mapping[str, float]) -> Iterator[str]:
        prefix = f"balance/{network}/"
        deviation = row.get(f"{prefix}norm_deviation")
        if deviation is None:
            return
        found = {kind: text for kind, text in self._beyond(network, deviation, norms) if text is not None}
        row[f"{prefix}alerts"] = len(found)
        for kind, text in found.items():
            if (network, kind) not in self._told:
                yield f"step {row[STEP]}: {network}: {text}"
        # Told again only after it has come back.
        self._told = {told for told in self._told if told[0] != network} | {(network, kind) for kind in found}
        self._last[network] = deviation

    def _beyond(self, network: str, deviation: float, norms: Mapping[str, float]) -> Iterator[tuple[str, str | None]]:
        limit, jump, share = self._bounds
        if limit is not None and deviation > limit:
            yield "deviation", f"norm deviation {deviation:.4g} is above {limit:g}"
        before = self._last.get(network)
        if jump is not None and before is not None and deviation > jump * before > 0:
            yield "jump", f"norm deviation grew from {before:.4g} to {deviation:.4g} since the row before"
        if share is not None:
            yield "share", _largest(share, norms)


def _norms_by_network(row: Row) -> dict[str, dict[str, float]]:
    """Network -> core -> squared norm; in one pass, because a row of many networks has thousands of keys."""
    found: dict[str, dict[str, float]] = {}
    for key, value in row.items():
        network, is_core, core = key.partition("/core_norm_sq/")
        if is_core and value is not None:
            found.setdefault(network.removeprefix("balance/"), {})[core] = value
    return found


def _largest(share: float, norms: Mapping[str, float]) -> str | None:
    """What to say of the core that holds more than `share` of the sum of squared norms."""
    total = sum(norms.values())
    if not total > 0:
        return None
    core = max(norms, key=lambda name: norms[name])
    held = norms[core] / total
    return f"core {core} holds {held:.1%} of the squared norm, more than {share:.1%}" if held > share else None
