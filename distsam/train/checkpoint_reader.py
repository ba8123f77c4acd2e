"""Reading a checkpoint without trusting it: an unpickler that knows a dozen names, and tensors only."""

import json
import pickle
import warnings
from collections.abc import Iterable
from pathlib import Path
from types import NoneType
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata

from distsam.errors import InputError
from distsam.runs.checkpoints import INDEX, STATE

# What an index of tensors consists of. A pickle can call whatever it can name, so it may name nothing else.
_ALLOWED = {
    "torch.distributed.checkpoint.metadata": {
        "Metadata",
        "TensorStorageMetadata",
        "TensorProperties",
        "ChunkStorageMetadata",
        "MetadataIndex",
        "StorageMeta",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size"},
    "pathlib": {"PosixPath", "WindowsPath"},
    "pathlib._local": {"PosixPath", "WindowsPath"},
}

# What a resume needs to know of a checkpoint beside its tensors.
_NEEDED: dict[str, type | tuple[type, ...]] = {
    "step": int,
    "fingerprint": str,
    "data_sha256": str,
    "engine": dict,
    "best_value": (float, int, NoneType),
    "best_step": (int, NoneType),
    "num_stale": int,
    "last_is_best": bool,
    "elapsed_s": (float, int),
}
_NEEDED_OF_ENGINE: dict[str, type | tuple[type, ...]] = {
    "counters": dict,
    "groups": list,
    "built": list,
    "base": dict,
    "schedules": dict,
}
_COUNTERS = dict.fromkeys(("num_steps", "num_skipped", "num_in_a_row"), int)


class _IndexUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name in _ALLOWED.get(module, ()):
            return super().find_class(module, name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}")


class _TensorReader(dcp.FileSystemReader):
    """DCP's reader, but for the index, which `read_index` reads."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        metadata = read_index(Path(self.path))
        metadata.storage_meta = StorageMeta(load_id=self.load_id)
        return metadata


def read_index(path: Path) -> Metadata:
    """The index of the checkpoint folder `path`: names, shapes, dtypes, places.

    Raises:
        InputError: it is damaged, or would have run something or read other files than the checkpoint's.
    """
    file = path / INDEX
    try:
        with file.open("rb") as stream:
            metadata = _IndexUnpickler(stream).load()
    except Exception as error:  # a damaged pickle raises nearly anything
        raise InputError(f"{file}: is no index of a checkpoint of distsam: {_line(error)}") from None
    if not isinstance(metadata, Metadata) or not isinstance(metadata.storage_data, dict):
        raise InputError(f"{file}: is no index of a checkpoint of distsam")
    for info in metadata.storage_data.values():
        if Path(info.relative_path).name != info.relative_path:
            raise InputError(f"{file}: points outside its folder, to {info.relative_path}")
    return metadata


def tensor_shapes(path: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Name -> (shape, dtype) of every tensor in the checkpoint folder `path`."""
    entries = read_index(path).state_dict_metadata.items()
    return {n: (e.size, e.properties.dtype) for n, e in entries if isinstance(e, TensorStorageMetadata)}


def read_state(path: Path, counters: Iterable[str] = ()) -> dict[str, Any]:
    """What the checkpoint folder `path` says beside its tensors: step, counters, best value, versions.

    Args:
        counters: names that the engine's counters must hold beside those of every engine.

    Raises:
        InputError: the file cannot be read, or lacks something that a resume needs.
    """
    file = path / STATE
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read: {_line(error)}") from None
    engine = state.get("engine") if isinstance(state, dict) else None
    counted = engine.get("counters") if isinstance(engine, dict) else None
    wanted = {**_COUNTERS, **dict.fromkeys(counters, int)}
    for found, kinds in ((state, _NEEDED), (engine, _NEEDED_OF_ENGINE), (counted, wanted)):
        for key, kind in kinds.items():
            if not isinstance(found, dict) or key not in found or not isinstance(found[key], kind):
                raise InputError(f"{file}: holds no {key} that can be used; remove that checkpoint, it is damaged")
    return dict(state)


def load_tensors(path: Path, tensors: dict[str, Tensor], group: dist.ProcessGroup | None = None) -> None:
    """Fill `tensors` (tensors or DTensors, any placement) in place from the checkpoint folder `path`.

    Args:
        group: a gloo group of all ranks; None in a process without process group.

    Collectives: object gathers over `group`; every rank calls.

    Raises:
        InputError: the checkpoint lacks a tensor, has it in another shape, or cannot be read.
    """
    shapes = tensor_shapes(path)
    for name, tensor in tensors.items():
        if name not in shapes:
            raise InputError(f"{path}: holds no tensor {name}; it is a checkpoint of another model")
        if shapes[name][0] != tensor.shape:
            saved, asked = tuple(shapes[name][0]), tuple(tensor.shape)
            raise InputError(f"{path}: {name} has shape {saved}, the model has {asked}")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
            dcp.load(
                tensors,
                storage_reader=_TensorReader(path),
                process_group=group,
                no_dist=group is None,
            )
    except CheckpointException as failure:
        cause = next(iter(failure.failures.values()))[0]
        raise InputError(f"{path}: cannot be loaded: {_line(cause)}") from None


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
