"""`distsam keys`: what a config may hold."""

from typing import Annotated

import typer

from distsam.commands.messages import mistakes_as_messages
from distsam.errors import InputError


def keys(
    section: Annotated[str | None, typer.Argument(help="One section, such as optim; all without it.")] = None,
    *,
    task: Annotated[str, typer.Option(help="Of this task.kind: completion or classification.")] = "completion",
) -> None:
    """List the keys of a config: each with its default, its meaning, and what it belongs to."""
    with mistakes_as_messages():
        from distsam.train.key_list import key_lines, section_names

        names = section_names(task)
        if section is not None and section not in names:
            raise InputError(f"keys: there is no section {section!r}; there are {', '.join(names)}")
        for line in key_lines(section, task):
            print(line)
