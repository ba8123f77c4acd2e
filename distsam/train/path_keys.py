"""A file of the user's, as a key of any source of data."""

from pathlib import Path

from distsam.train.seams import Field, Section, field_validator


class PathKeys(Section):
    """Kept as an absolute path, so that a run finds its data from wherever it is looked at."""

    path: str = Field(description="The file.")

    @field_validator("path")
    @classmethod
    def _found_from_everywhere(cls, path: str) -> str:
        try:
            return str(Path(path).expanduser().absolute())
        except RuntimeError:  # ~name of nobody
            return path
