"""What runs on every rank to measure what `distsam plan` predicts: a step of a run, built as `distsam train` does."""

from collections import Counter
from typing import Any

import torch
from collective_count import CollectiveCount
from torch import Tensor

from distsam.engine import NativeEngine
from distsam.sharding import World, local_tensor
from distsam.sharding.collectives import rank, world_size
from distsam.train.build import build_parts, build_task
from distsam.train.config_file import load_config
from distsam.train.placement import build_layout

KINDS = {"_allgather_base_": "all_gather", "_reduce_scatter_base_": "reduce_scatter", "allreduce_": "all_reduce"}


def measure_second_step(path: str, overrides: list[str]) -> dict[str, Any]:
    """Collectives of the second step as (kind, bytes, how many), and bytes that stay on this rank after it."""
    config = load_config(path, overrides)
    layout = build_layout(config, World(rank(), world_size(), rank(), torch.device("cpu")))
    task = build_task(config, layout)
    run = build_parts(config, task, layout)
    engine, count = run.engine, config.train.accumulate
    assert isinstance(engine, NativeEngine)
    for step in range(2):
        batches = task.microbatches(step, count)
        with CollectiveCount() as calls:
            engine.step([lambda batch=batch: task.loss(run.model, batch) for batch in batches])  # type: ignore[misc]
    sizes = Counter((KINDS[name], num_bytes) for name, num_bytes in calls.sizes)
    return {
        "collectives": sorted((*call, number) for call, number in sizes.items()),
        "weights": stored_bytes(list(run.model.parameters())),
        "optimizer_state": stored_bytes(list(engine.state_tensors().values())),
        "copies": stored_bytes([copy for wrapper in engine.optimizer.chain() for copy in wrapper.copies]),
    }


def stored_bytes(tensors: list[Tensor]) -> int:
    """Bytes of the memory that holds this rank's pieces; what two of them share counts once."""
    storages = {s.data_ptr(): s.nbytes() for t in tensors if (s := local_tensor(t).untyped_storage()).nbytes()}
    return sum(storages.values())
