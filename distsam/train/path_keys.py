"""A file or folder of the user's, as a key."""

from pathlib import Path

from distsam.train.seams import Field, Section, field_validator


def absolute(path: str) -> str:
    """`path` from the root, so that a run finds it from wherever it is looked at."""
    try:
        return str(Path(path).expanduser().absolute())
    except RuntimeError:  # ~name of nobody
        return path


class PathKeys(Section):
    """Kept as an absolute path."""

    path: str = Field(description="The file.")

    _absolute = field_validator("path")(absolute)
