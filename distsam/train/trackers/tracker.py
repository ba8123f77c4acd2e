"""What a tracker is."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Protocol


class Tracker(Protocol):
    """Takes the rows of a run as they come; only rank 0 has any.

    One that sends rows elsewhere must not end the training when that fails: it prints one line and sends no more. The
    record of the run (jsonl) may raise.
    """

    def log(self, row: Mapping[str, float | int | None]) -> None:
        """Take one row; it must not be changed."""

    def alert(self, message: str) -> None:
        """Take one line that a person should see; it has been printed already."""

    def close(self) -> None:
        """The run is over; a second call does nothing."""


class TrackerGroup:
    """Several trackers as one.

    Args:
        members: told in this order, so the record of the run comes first.
    """

    def __init__(self, members: Sequence[Tracker]) -> None:
        self.members = tuple(members)

    def log(self, row: Mapping[str, float | int | None]) -> None:
        """Tell all of a row."""
        for tracker in self.members:
            tracker.log(row)

    def alert(self, message: str) -> None:
        """Tell all of a message."""
        for tracker in self.members:
            tracker.alert(message)

    def close(self) -> None:
        """Close all, the last first, also where one of them raises."""
        with ExitStack() as closing:
            for tracker in self.members:
                closing.callback(tracker.close)
