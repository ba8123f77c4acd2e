"""`distsam keys`: what a config may hold."""

from typing import Annotated

import typer

from distsam.commands.messages import mistakes_as_messages
from distsam.errors import InputError


def keys(
    section: Annotated[str | None, typer.Argument(help="One section, such as optim; all without it.")] = None,
) -> None:
    """List the keys of a config: each with its default, its meaning, and what it belongs to."""
    with mistakes_as_messages():
        from distsam.train.key_list import key_lines, section_names

        if section is not None and section not in section_names():
            raise InputError(f"keys: there is no section {section!r}; there are {', '.join(section_names())}")
        for line in key_lines(section):
            print(line)
