"""What a study needs to know of a config before its runs: the numbers in place of auto, and the task."""

from distsam.errors import InputError
from distsam.sharding import Layout
from distsam.tasks.task import Task
from distsam.train.build import build_task
from distsam.train.config import Config
from distsam.train.settled import settled


def check_validation(config: Config) -> None:
    """InputError where there is nothing to choose settings by."""
    data = getattr(config, "data", None)
    if data is not None and data.validation == 0:
        raise InputError("data.validation: 0 leaves no entries to choose settings by; give it 0.1, for instance")


def opened(config: Config) -> tuple[Config, Task]:
    """`config` with a number wherever it says auto and the data decide it, and its task; in this process.

    So that every run of a study begins with the same numbers, and ranges can be laid around them.

    Raises:
        InputError: its data cannot be used.
    """
    task = build_task(config, Layout.alone("cpu"))
    config = settled(config, task)
    return config, task
