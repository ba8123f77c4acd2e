"""Checkpoints: written beside the training, published by one rename, the last few kept."""

import shutil
import warnings
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from distsam.errors import CheckpointFailed
from distsam.runs.checkpoints import UNFINISHED, finished_checkpoints, seal, sync_folder
from distsam.train.checkpoint_reader import load_tensors


class Checkpointer:
    """Saves and loads the checkpoints of one run; every rank holds one and makes the same calls.

    A checkpoint is written into `step-XXXXXXXX.tmp` and renamed once every rank's files are on the disk,
    so that a folder without `.tmp` is whole.

    Args:
        folder: folder of the checkpoints.
        keep: how many are kept, the newest ones.
        rank: of this process; 0 renames and removes.

    Collectives: opens a gloo group of its own, because saving talks while training talks.
    """

    def __init__(self, folder: Path, keep: int, rank: int) -> None:
        self.folder = folder
        self.keep = keep
        self.rank = rank
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() else None
        self._last_step: int | None = None
        self._pending: tuple[int, Future[Any], dict[str, Any]] | None = None
        if rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            for leftover in folder.glob(f"step-*{UNFINISHED}"):
                shutil.rmtree(leftover)

    def save(self, step: int, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
        """Copy `tensors` to host memory and write them in the background, after the save before has ended.

        A step that was saved or loaded last is not written again.

        Args:
            step: the last step that is in the weights.
            tensors: name -> tensor or DTensor, the same names on every rank.
            plain: what else a resume needs to know; kept as JSON.

        Collectives: object gathers over the own group, in a thread; every rank calls.
        """
        if step == self._last_step:
            return
        self.wait()
        self._last_step = step
        _expect_known_warnings()
        writer = dcp.FileSystemWriter(self._path(step).with_name(self._path(step).name + UNFINISHED))
        future = dcp.async_save(tensors, storage_writer=writer, process_group=self._group, no_dist=self._group is None)
        assert isinstance(future, Future)
        self._pending = (step, future, {"step": step, **plain})

    def poll(self) -> None:
        """Publish the save under way if it is done; never waits for it."""
        if self._pending is not None and self._pending[1].done():
            self.wait()

    def wait(self) -> None:
        """Wait for the save under way and publish it.

        Raises:
            CheckpointFailed: it could not be written; the checkpoints before it are untouched.
        """
        if self._pending is None:
            return
        step, future, plain = self._pending
        self._pending = None
        try:
            future.result()
        except CheckpointException as failure:
            causes = "; ".join(f"rank {rank}: {cause[0]}" for rank, cause in failure.failures.items())
            raise CheckpointFailed(_failure(step, causes)) from failure
        if self.rank == 0:
            try:
                self._publish(step, plain)
            except OSError as error:
                raise CheckpointFailed(_failure(step, str(error))) from error

    def newest(self) -> Path | None:
        """The newest whole checkpoint as rank 0 sees it, so that all ranks go on from the same one.

        Collectives: one object broadcast over the own group; every rank calls.
        """
        found = finished_checkpoints(self.folder)
        name = [found[-1].name if found else None]
        if self._group is not None:
            dist.broadcast_object_list(name, src=0, group=self._group)
        return None if name[0] is None else self.folder / name[0]

    def load(self, path: Path, tensors: dict[str, Tensor]) -> None:
        """Fill `tensors` in place from the checkpoint `path`, whatever the world size that wrote it.

        Collectives: object gathers over the own group; every rank calls.
        """
        load_tensors(path, tensors, self._group)
        self._last_step = int(path.name.removeprefix("step-"))

    def _publish(self, step: int, plain: dict[str, Any]) -> None:
        path = self._path(step)
        part = path.with_name(path.name + UNFINISHED)
        seal(part, plain)
        if path.exists():
            shutil.rmtree(path)  # damaged, or it would not be written anew
        part.rename(path)
        sync_folder(self.folder)
        for old in finished_checkpoints(self.folder)[: -self.keep]:
            _remove(old)

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"


def _failure(step: int, cause: str) -> str:
    return f"the checkpoint of step {step} could not be written: {' '.join(cause.split())}"


def _remove(path: Path) -> None:
    # Renamed first: a process that is killed half way must not leave a part that looks whole.
    doomed = path.with_name(path.name + UNFINISHED)
    path.rename(doomed)
    shutil.rmtree(doomed)


def _expect_known_warnings() -> None:
    # DCP warns where there is no process group, as is right for one process. It does so in a thread of its own, for
    # which a filter cannot be set and taken back: this one stays.
    warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
