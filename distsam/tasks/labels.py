"""What the positions along a mode are called."""

import difflib
from dataclasses import dataclass
from functools import cached_property
from typing import Any


@dataclass(frozen=True)
class Mode:
    """One mode of a tensor that came with labels.

    Args:
        name: of the mode.
        labels: of its positions: text, dates or integers.
    """

    name: str
    labels: tuple[Any, ...]

    @cached_property
    def positions(self) -> dict[Any, int]:
        """Label -> position."""
        return {label: position for position, label in enumerate(self.labels)}

    def position_of(self, label: Any) -> int:
        """Where a label stands; text stands for the label that is written so.

        Raises:
            ValueError: the mode has no such label; the message is for people.
        """
        found = self.positions.get(label)
        if found is None:
            found = self._written.get(str(label))
        if found is None:
            nearest = difflib.get_close_matches(str(label), list(self._written)[:10_000], n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            raise ValueError(f"{str(label)!r} is no label of {self.name!r} in the data of the run{hint}")
        return found

    @cached_property
    def _written(self) -> dict[str, int]:
        return {str(label): position for position, label in enumerate(self.labels)}
