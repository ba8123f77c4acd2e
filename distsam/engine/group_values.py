"""The values of an optimizer's parameter groups, saved and restored: a checkpoint's, unless the user gives others."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from distsam.engine.optimizer_state import is_plain
from distsam.errors import ArgumentError
from distsam.optim import Wrapper

Values = list[dict[str, Any]]


class GroupValues:
    """What stands in the groups of `optimizer` beside parameters; build it before the first step.

    Args:
        optimizer: whose groups.
        scheduled: keys that a schedule sets; they are left to it.
    """

    def __init__(self, optimizer: Wrapper, scheduled: Iterable[str]) -> None:
        self._optimizer = optimizer
        self._scheduled = {"params", *scheduled}
        self._built = self._now()

    def state(self) -> dict[str, Values]:
        """The values as they are, and as they were when this was built; for JSON."""
        return {"groups": self._now(), "built": self._built}

    def load_state(self, state: Mapping[str, Values]) -> None:
        """Restore every value with which its group is built now as it was then; where the user gave another one, that
        stays.

        Raises:
            ArgumentError: the state has another number of groups.
        """
        groups = self._optimizer.param_groups
        if len(state["groups"]) != len(groups):
            raise ArgumentError("state", f"of {len(state['groups'])} parameter groups; the optimizer has {len(groups)}")
        for group, built, was_built, saved in zip(groups, self._built, state["built"], state["groups"], strict=True):
            for key, value in saved.items():
                if key in built and built[key] == was_built.get(key):
                    put_value(group, key, value)

    def _now(self) -> Values:
        return [
            {key: plain for key in group if key not in self._scheduled for plain in _plain(group[key])}
            for group in self._optimizer.param_groups
        ]


def put_value(group: dict[str, Any], key: str, value: Any) -> None:
    """Set `group[key]`, in place where it is a tensor (a compiled or captured step reads that), and of its kind."""
    old = group[key]
    if isinstance(old, Tensor):
        old.fill_(value)
    else:
        group[key] = tuple(value) if isinstance(old, tuple) else value


def _plain(value: Any) -> list[Any]:
    """[the value for JSON], or [] if it has none."""
    if isinstance(value, Tensor):
        return [value.item()] if value.numel() == 1 else []
    if isinstance(value, tuple | list):
        parts = [part for item in value for part in _plain(item)]
        return [parts] if len(parts) == len(value) else []
    return [value] if is_plain(value) else []
