"""A new tracker: the deviation of every row as a line of text."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distsam.train.parts import TRACKERS
from distsam.train.seams import Field, Section, TrackerPart


class LedgerKeys(Section):
    file: str | None = Field(default=None, description="Name of the file in the run folder; null: no ledger.")


class Ledger:
    def __init__(self, path: Path) -> None:
        self._stream = path.open("a")

    def log(self, row: Mapping[str, float | int | None]) -> None:
        deviations = [value for key, value in row.items() if key.endswith("/norm_deviation")]
        self._stream.write(f"{row['train/step']} {deviations}\n")
        self._stream.flush()

    def alert(self, message: str) -> None:
        self._stream.write(f"! {message}\n")

    def close(self) -> None:
        self._stream.close()


def build(keys: LedgerKeys, folder: Path, config: Mapping[str, Any], start_step: int) -> Ledger | None:
    return None if keys.file is None else Ledger(folder / keys.file)


TRACKERS.add(TrackerPart("ledger", LedgerKeys, build))
