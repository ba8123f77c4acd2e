"""Checkpoints of sharded runs: whole on disk, loadable by any number of ranks."""

from pathlib import Path

import numpy as np
import pytest
import torch
from rank_cases import build, this_world
from rank_pool import RankPool

from distsam.engine import NativeEngine
from distsam.runs.checkpoints import finished_checkpoints
from distsam.tasks.task import Goal
from distsam.train.checkpoint import Checkpointer
from distsam.train.checkpoint_reader import load_tensors, tensor_shapes
from distsam.train.run_state import BestWeights, RunState

GOAL = Goal("validation/r2", higher_is_better=True, columns=("r2",))


def _whole(tensors: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    full = {n: t.full_tensor() if hasattr(t, "full_tensor") else t for n, t in tensors.items()}
    return {name: tensor.cpu().numpy().copy() for name, tensor in full.items()}


def save_and_spoil(folder: Path, plan: str, replicas: int) -> dict[str, np.ndarray]:
    """Three SAM steps, a save, and at once zeros in the weights while it is still being written."""
    model, optimizer, closure = build(plan, replicas, torch.float64, "sam")
    for _ in range(3):
        optimizer.step(closure)
    state, engine = RunState(BestWeights(GOAL)), NativeEngine(model, optimizer)
    state.best.consider(engine.weights, 3, 0.5)
    tensors = {**state.tensors(engine.weights()), **engine.state_tensors()}
    before = _whole(tensors)
    checkpointer = Checkpointer(folder, 2, this_world().rank)
    checkpointer.save(3, tensors, {})
    with torch.no_grad():
        for tensor in tensors.values():
            tensor.zero_()
    checkpointer.wait()
    return before


def resume(folder: Path, plan: str, replicas: int) -> dict[str, np.ndarray]:
    """What a run that has just been built holds after loading the newest checkpoint."""
    model, optimizer, _ = build(plan, replicas, torch.float64, "sam")
    checkpointer = Checkpointer(folder, 2, this_world().rank)
    newest, _ = checkpointer.newest()
    assert newest is not None
    shapes, state = tensor_shapes(newest), RunState(BestWeights(GOAL))
    engine = NativeEngine(model, optimizer)
    state.allocate_best(engine.weights(), shapes)
    room = {**state.tensors(engine.weights()), **engine.allocate_state(shapes)}
    checkpointer.load(newest, room)
    return _whole(room)


def assert_equal(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert np.array_equal(value, right[name]), name


@pytest.mark.parametrize(("plan", "replicas"), [("replicate", 1), ("fsdp", 1)])
def test_two_ranks_save_what_was_there_when_save_returned(
    two_ranks: RankPool, tmp_path: Path, plan: str, replicas: int
) -> None:
    saved = two_ranks.run(save_and_spoil, tmp_path, plan, replicas)
    [path] = finished_checkpoints(tmp_path)
    loaded = {name: torch.zeros(size, dtype=dtype) for name, (size, dtype) in tensor_shapes(path).items()}
    load_tensors(path, loaded)
    assert_equal(_whole(loaded), saved[0])
    assert not list(tmp_path.glob("*.tmp"))


def test_a_checkpoint_of_four_ranks_on_a_2d_mesh_loads_on_two_and_on_four(
    two_ranks: RankPool, four_ranks: RankPool, tmp_path: Path
) -> None:
    saved = four_ranks.run(save_and_spoil, tmp_path, "fsdp", 2)
    for pool, plan, replicas in ((two_ranks, "fsdp", 1), (two_ranks, "replicate", 1), (four_ranks, "fsdp", 1)):
        for loaded in pool.run(resume, tmp_path, plan, replicas):
            assert_equal(loaded, saved[0])
