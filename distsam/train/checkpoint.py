"""Checkpoints: written beside the training, published by one rename, the last few kept."""

import warnings
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from distsam.errors import SharedInputError
from distsam.runs.checkpoints import (
    CHECKSUM,
    UNFINISHED,
    damage,
    finished_checkpoints,
    published_checkpoints,
    remove,
    remove_unfinished,
    seal,
    sha256_of,
    sync_folder,
)
from distsam.sharding import with_ranges
from distsam.train.checkpoint_reader import load_tensors


class Checkpointer:
    """Saves and loads the checkpoints of one run; every rank holds one and makes the same calls.

    A checkpoint is written into `step-XXXXXXXX.tmp` and renamed once every rank's files are on the disk,
    so that a folder without `.tmp` is whole.

    Args:
        folder: folder of the checkpoints.
        keep: how many are kept, the newest ones.
        rank: of this process; 0 renames and removes.
        may_write: asked on rank 0 before anything is written; once it says no, no rank writes.

    Attributes:
        problem: why the last save that has ended could not be written; else None. Known on every rank where a rank's
            files could not be written, on rank 0 alone where they could not be published.

    Collectives: opens a gloo group of its own, because saving talks while training talks.
    """

    def __init__(self, folder: Path, keep: int, rank: int, may_write: Callable[[], bool] = lambda: True) -> None:
        self.folder = folder
        self.keep = keep
        self.rank = rank
        self._may_write = may_write
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() else None
        self.problem: str | None = None
        self._last_step: int | None = None
        self._damaged: set[str] = set()
        self._pending: tuple[int, Future[Any], dict[str, Any]] | None = None
        if rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            remove_unfinished(folder)

    def save(self, step: int, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
        """Copy `tensors` to host memory and write them in the background, after the save before has ended.

        A step that was saved or loaded last is not written again.

        Args:
            step: the last step that is in the weights.
            tensors: name -> tensor or DTensor, the same names on every rank.
            plain: what else a resume needs to know; kept as JSON.

        Collectives: object gathers over the own group, in a thread; every rank calls.
        """
        self.wait()
        if self._is_saved(step):
            return
        self._last_step = step
        _expect_known_warnings()
        writer = _ChecksumWriter(self._path(step).with_name(self._path(step).name + UNFINISHED))
        future = dcp.async_save(tensors, storage_writer=writer, process_group=self._group, no_dist=self._group is None)
        assert isinstance(future, Future)
        self._pending = (step, future, {"step": step, **plain})

    def give_up(self, step: int, cause: str) -> None:
        """Write no checkpoint of `step`, after the save before has ended; `problem` says why."""
        self.wait()
        self._give_up(step, cause)

    def _is_saved(self, step: int) -> bool:
        """As rank 0 says, which alone knows whether its files were published; True also if nothing may be written."""
        said = [step == self._last_step or (self.rank == 0 and not self._may_write())]
        if self._group is not None:
            dist.broadcast_object_list(said, src=0, group=self._group)
        return said[0]

    def poll(self) -> None:
        """Publish the save under way if it is done; never waits for it."""
        if self._pending is not None and self._pending[1].done():
            self.wait()

    def wait(self) -> None:
        """Wait for the save under way and publish it. Where that fails, the checkpoints before it are untouched, and
        `problem` says why."""
        if self._pending is None:
            return
        step, future, plain = self._pending
        self._pending = None
        try:
            future.result()
        except CheckpointException as failure:
            self._give_up(step, "; ".join(f"rank {rank}: {cause[0]}" for rank, cause in failure.failures.items()))
            return
        try:
            if self.rank == 0:
                self._publish(step, plain)
            self.problem = None
        except OSError as error:
            self._give_up(step, str(error))

    def newest(self) -> tuple[Path | None, list[str]]:
        """The newest checkpoint that is what was written, the same on every rank, and a line for each that is not.

        The files are read to take their checksums; ranks share that.

        Collectives: one object broadcast, and one object gather a checkpoint that is looked at, over the own group;
        every rank calls.

        Raises:
            SharedInputError: there are some and all are damaged, or a rank does not see the files that rank 0 sees.
        """
        names = [[path.name for path in reversed(published_checkpoints(self.folder))]]
        if self._group is not None:
            dist.broadcast_object_list(names, src=0, group=self._group)
        lines: list[str] = []
        for name in names[0]:
            problem = self._damage(self.folder / name)
            if problem is None:
                return self.folder / name, lines
            lines.append(f"{self.folder / name}: is damaged and not used: {problem}")
            self._damaged.add(name)
        if lines:
            # To begin anew would overwrite the rows of a run that somebody may still want to mend.
            raise SharedInputError(f"{lines[0]}; none before it can be used: remove {self.folder} to start anew")
        return None, lines

    def _damage(self, path: Path) -> str | None:
        """What is wrong with a checkpoint, by what all ranks found in their share of its files."""
        if self._group is None:
            return damage(path)
        own = damage(path, self.rank, dist.get_world_size()), not path.is_dir()
        found: list[tuple[str | None, bool]] = [(None, False)] * dist.get_world_size()
        dist.all_gather_object(found, own, group=self._group)
        for rank, (_, is_absent) in enumerate(found):
            if is_absent:
                raise SharedInputError(f"rank {rank}: {path}: does not exist there; every rank must see the run folder")
        return next((problem for problem, _ in found if problem is not None), None)

    def load(self, path: Path, tensors: dict[str, Tensor]) -> None:
        """Fill `tensors` in place from the checkpoint `path`, whatever the world size that wrote it.

        Collectives: object gathers over the own group; every rank calls.
        """
        load_tensors(path, with_ranges(tensors), self._group)
        self._last_step = int(path.name.removeprefix("step-"))

    def _give_up(self, step: int, cause: str) -> None:
        """Make room where a checkpoint could not be written, and let its step be tried again."""
        self.problem = f"the checkpoint of step {step} could not be written: {' '.join(cause.split())}"
        self._last_step = None
        if self.rank == 0:
            path = self._path(step)
            with suppress(OSError):
                remove(path.with_name(path.name + UNFINISHED))

    def _publish(self, step: int, plain: dict[str, Any]) -> None:
        if not self._may_write():
            raise FileNotFoundError("the run folder is no longer there")
        path = self._path(step)
        part = path.with_name(path.name + UNFINISHED)
        seal(part, plain)
        remove(path)  # damaged, or it would not be written anew
        part.rename(path)
        sync_folder(self.folder)
        self._damaged.discard(path.name)
        whole = [p for p in finished_checkpoints(self.folder) if p.name not in self._damaged]
        for old in whole[: -self.keep]:
            _discard(old)

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"


class _ChecksumWriter(dcp.FileSystemWriter):
    """DCP's writer, but pieces of unequal ranges are what they are, and each rank takes the checksums of its own files,
    in the thread that writes them."""

    def stage(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        return with_ranges(super().stage(state_dict), placed_as=state_dict)

    def write_data(self, *args: Any, **kwargs: Any) -> Any:
        written = super().write_data(*args, **kwargs)
        for name in {result.storage_data.relative_path for result in written.wait()}:
            file = Path(self.path) / name
            file.with_name(name + CHECKSUM).write_text(sha256_of(file))
        return written


def _discard(path: Path) -> None:
    # Renamed first: a process that is killed half way must not leave a part that looks whole.
    doomed = path.with_name(path.name + UNFINISHED)
    path.rename(doomed)
    remove(doomed)


def _expect_known_warnings() -> None:
    # DCP warns where there is no process group, as is right for one process. It does so in a thread of its own, for
    # which a filter cannot be set and taken back: this one stays.
    warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
