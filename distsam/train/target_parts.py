"""The keys of a task of the user's own, and how it is built."""

from typing import Any

from distsam.errors import ArgumentError
from distsam.train.seams import Field, Section


class TargetKeys(Section):
    """What is made by a function of the user's: a task, and the data or the model of a classification."""

    target: str = Field(description="package.module:factory, a function of yours.")
    arguments: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments of the factory.")

    def check(self) -> None:
        """ArgumentError where YAML has read {a:2} as the key 'a:2' without a value."""
        for name, value in self.arguments.items():
            if value is None and ":" in name:
                raise ArgumentError("arguments", f"{name!r} needs a space after the colon, as in {{a: 2}}")


def build_task(config: Any, context: Any) -> Any:
    """The task that task.target makes."""
    from distsam.tasks.target import load_target

    keys = config.part_keys("task", TargetKeys)
    return load_target(keys.target, context, keys.arguments)


def origin(config: Any) -> tuple[str, Any]:
    """Whose data they are."""
    return "task.target", config.task.target
