"""The one place where errors about arguments become errors about keys of a config."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from distsam.errors import ArgumentError, InputError


@contextmanager
def arguments_as_keys(section: str, **keys: str) -> Iterator[None]:
    """Say an ArgumentError of the code inside with the config key by which the argument was given.

    Args:
        section: where an argument that is not in `keys` has a key of its own name.
        keys: argument -> dotted key.

    Raises:
        InputError: in place of the ArgumentError; an index behind the argument's name stays.
    """
    try:
        yield
    except ArgumentError as error:
        name, rest = re.fullmatch(r"(\w*)(.*)", error.argument, re.DOTALL).groups()  # type: ignore[union-attr]
        raise InputError(f"{keys.get(name, f'{section}.{name}')}{rest}: {error.problem}") from None
