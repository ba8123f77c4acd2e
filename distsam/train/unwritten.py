"""What of a run cannot be written now: said once, tried again, and an error only if it is missing at the end."""

from collections.abc import Callable


class Unwritten:
    """Keeps what is missing of a run folder.

    Args:
        say: takes a line for people.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._problems: dict[str, str] = {}

    def note(self, what: str, problem: str | None) -> None:
        """`what` could not be written, because of `problem`; or it is written, where that is None."""
        if problem is None:
            if self._problems.pop(what, None) is not None:
                self._say(f"{what} could be written again")
            return
        if what not in self._problems:
            self._say(f"{problem}; training goes on, and it is tried again")
        self._problems[what] = problem

    def gone(self, what: str, problem: str) -> None:
        """`what` is lost for the rest of the run: said once."""
        if what not in self._problems:
            self._say(f"{problem}; training goes on, but nothing more is written")
        self._problems[what] = problem

    def lose(self, what: str, problem: str) -> None:
        """`what` could not be written, and nobody will try again; `missing` says so."""
        self._problems[what] = problem

    @property
    def missing(self) -> str | None:
        """All that is missing, as one line; None if nothing is."""
        return "; ".join(self._problems.values()) or None
