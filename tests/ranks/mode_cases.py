"""What runs on every rank: a network with one long mode, whose rows and their data are divided over the ranks."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from plan_cases import METHODS
from rank_cases import this_world
from torch import Tensor

import distsam
from distsam.engine import NativeEngine
from distsam.optim import Wrapper
from distsam.sharding import Bond, Layout, Mode, Plan, Replicate, local_tensor, make_layout, place_model
from distsam.sharding.collectives import all_reduce_sum_
from distsam.train.checkpoint import Checkpointer
from distsam.train.checkpoint_reader import tensor_shapes

ROWS, NUM_ENTRIES, STEPS = 23, 61, 10
# Unequal ranges for every number of ranks; one of four is empty.
BOUNDS = {1: (0, ROWS), 2: (0, 5, ROWS), 4: (0, 2, 2, 15, ROWS)}
SPECS: dict[str, Callable[[], distsam.NetworkSpec]] = {
    "cp": lambda: distsam.cp((7, ROWS, 5), 6),
    "tt": lambda: distsam.tt((7, ROWS, 5, 3), 3),
    "tucker": lambda: distsam.tucker((7, ROWS, 5), (3, 4, 3)),
}
PLANS: dict[str, Callable[[int], Plan]] = {
    "replicate": lambda size: Replicate(),
    "mode": lambda size: Mode(1, bounds=BOUNDS[size]),
    "mode:2": lambda size: Mode(1, 2, BOUNDS[2]),
    "mode+bond": lambda size: Bond(2, Mode(1, bounds=BOUNDS[size // 2])),
}


@cache
def layout_of_rows(plan: str) -> Layout:
    """Made once in a process that stays; see `plan_cases.layout_of`."""
    world = this_world()
    return make_layout(world, PLANS[plan](world.world_size))


def placed(plan: str, spec: str) -> tuple[distsam.TensorNetwork, Layout, range]:
    """The network on its plan, and the rows of this rank."""
    generator = torch.Generator().manual_seed(0)
    network = distsam.TensorNetwork(SPECS[spec](), std=0.5, generator=generator, dtype=torch.float64)
    if not torch.distributed.is_initialized():
        return network, Layout.alone(), range(ROWS)
    layout = layout_of_rows(plan)
    chosen = PLANS[plan](layout.world.world_size)
    made = place_model(chosen, network, layout.axes)
    rows = range(ROWS)
    if made.routed is not None:
        assert layout.mesh is not None
        rows = range(*made.range_along("mode", ROWS, layout.mesh["mode"].get_local_rank()))
    distsam.shard(network, layout.mesh, made)
    return network, layout, rows


def own_entries(layout: Layout, rows: range) -> tuple[Tensor, Tensor]:
    """Of all entries those in this rank's rows, divided among the ranks that hold the same rows."""
    generator = torch.Generator().manual_seed(1)
    shape = (7, ROWS, 5, 3)
    indices = torch.stack([torch.randint(size, (NUM_ENTRIES,), generator=generator) for size in shape], 1)
    values = torch.randn(NUM_ENTRIES, generator=generator, dtype=torch.float64)
    is_own = (indices[:, 1] >= rows.start) & (indices[:, 1] < rows.stop)
    size = 1 if layout.mesh is None or "mode" not in dict(layout.axes) else dict(layout.axes)["mode"]
    copies, copy = layout.data_size // size, layout.data_rank // size
    return indices[is_own][copy::copies], values[is_own][copy::copies]


def closure_of(network: distsam.TensorNetwork, optimizer: Wrapper, layout: Layout, rows: range) -> Callable[[], Tensor]:
    indices, values = own_entries(layout, rows)

    def closure() -> Tensor:
        optimizer.zero_grad()
        errors = network.at(indices[:, : network.spec.order]) - values
        loss = errors.square().sum() * layout.data_size / NUM_ENTRIES
        loss.backward()
        return loss

    return closure


def whole(network: distsam.TensorNetwork, rows: range, layout: Layout) -> dict[str, np.ndarray]:
    """Every core in full: rows are put together here, independently of the package."""
    found = {}
    for name, core, indices in zip(network.spec.core_names, network.cores, network.spec.cores, strict=True):
        local = local_tensor(core.detach())
        full = torch.zeros(core.shape, dtype=torch.float64)
        if not torch.distributed.is_initialized():
            full.copy_(local)
        else:
            piece = full
            coordinate = () if layout.mesh is None else layout.mesh.get_coordinate() or ()
            weight = 1.0
            for (axis, size), position in zip(layout.axes, coordinate, strict=True):
                dims = [d for d in range(core.dim()) if local.shape[d] < core.shape[d]]
                if axis == "mode" and "i1" in indices:
                    piece = piece.narrow(indices.index("i1"), rows.start, len(rows))
                elif axis == "bond" and (cut := [d for d in dims if indices[d] != "i1"]):
                    step = -(-core.shape[cut[0]] // size)
                    piece = piece.narrow(cut[0], position * step, local.shape[cut[0]])
                elif position != 0:
                    weight = 0.0
            piece.copy_(local * weight)
            all_reduce_sum_(full)
        found[name] = full.numpy()
    return found


def train_rows(plan: str, spec: str, method: str) -> dict[str, np.ndarray]:
    """Every core after 10 steps."""
    network, layout, rows = placed(plan, spec)
    optimizer = METHODS[method](network)
    closure = closure_of(network, optimizer, layout, rows)
    for _ in range(STEPS):
        optimizer.step(closure)
    return whole(network, rows, layout)


def train_half_of_rows(plan: str, folder: Path, resumes: bool) -> dict[str, np.ndarray]:
    """Half of the steps and a checkpoint, or the other half from it; every core afterwards."""
    network, layout, rows = placed(plan, "cp")
    optimizer = METHODS["sam+das"](network)
    engine, checkpointer = NativeEngine(network, optimizer), Checkpointer(folder, 1, layout.world.rank)
    if resumes:
        newest, _ = checkpointer.newest()
        assert newest is not None
        weights, state = engine.weights(), engine.allocate_state(tensor_shapes(newest))
        checkpointer.load(newest, {**weights, **state})
        engine.put_weights(weights)
    closure = closure_of(network, optimizer, layout, rows)
    for _ in range(STEPS // 2):
        optimizer.step(closure)
    checkpointer.save(STEPS if resumes else STEPS // 2, {**engine.weights(), **engine.state_tensors()}, {})
    checkpointer.wait()
    return whole(network, rows, layout)


def dense_and_gradient(plan: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The whole tensor, and the gradient of half of its square by every core, as one process has it."""
    network, layout, rows = placed(plan, "cp")
    full = network.dense()
    (full.square().sum() / 2).backward()
    with torch.no_grad():
        for core in network.cores:
            assert core.grad is not None
            core.copy_(core.grad)
    return full.detach().numpy(), whole(network, rows, layout)


def entry_of_another_rank() -> str:
    """What is said where a rank is asked for a row that it does not hold."""
    network, _, rows = placed("mode", "cp")
    try:
        network.at(torch.tensor([[0, rows.stop % ROWS, 0]]))
    except IndexError as error:
        return str(error)
    return ""
