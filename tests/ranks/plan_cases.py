"""What runs on every rank: networks of every format and layers, of sizes that nothing divides, trained on any plan."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from rank_cases import full, this_world
from torch import Tensor, nn
from torch.optim import Optimizer

import distsam
from distsam.engine import NativeEngine
from distsam.optim import Plain, Wrapper
from distsam.sharding import Bond, Fsdp, Layout, Plan, Replicate, make_layout, place_model
from distsam.tensornet import kernels
from distsam.train.checkpoint import Checkpointer
from distsam.train.checkpoint_reader import tensor_shapes

PLANS: dict[str, Callable[[], Plan]] = {
    "replicate": Replicate,
    "fsdp": Fsdp,
    "fsdp:2": lambda: Fsdp(2),
    "uneven": lambda: Fsdp(uneven_from=2),
    "bond": Bond,
    "bond:2": lambda: Bond(2),
    "fsdp+bond": lambda: Bond(2, Fsdp(uneven_from=2)),
}
NUM_ENTRIES, STEPS = 37, 10
SHAPES = {"cp": (9, 7, 5), "tucker": (9, 7, 5), "chain": (6, 5, 4, 3, 7), "ring": (5, 4, 6, 3), "thin": (4, 5, 6)}


class Zoo(nn.Module):
    """The sum of five networks at entries, of a layer of each kind on vectors, and of rows of a table."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        specs = {
            "cp": distsam.cp(SHAPES["cp"], 6),
            "tucker": distsam.tucker(SHAPES["tucker"], (5, 4, 3)),
            "chain": distsam.tt(SHAPES["chain"], (4, 6, 5, 3)),
            "ring": distsam.tr(SHAPES["ring"], 3),
            "thin": distsam.tt(SHAPES["thin"], (1, 3)),
        }
        self.networks = nn.ModuleDict(
            {
                name: distsam.TensorNetwork(
                    spec, norms=range(1, spec.num_cores + 1), std=0.5, generator=generator, dtype=dtype
                )
                for name, spec in specs.items()
            }
        )
        self.layers = nn.ModuleList(
            distsam.TensorizedLinear(12, 12, format=format, rank=rank, dtype=dtype, generator=generator)
            for format, rank in (("tt_matrix", 3), ("tt", 5), ("cp", 4), ("tr", 2), ("tucker", 3))
        )
        self.table = distsam.TensorizedEmbedding(24, 12, rank=3, dtype=dtype, generator=generator)
        self.scale = nn.Parameter(torch.ones(3, dtype=dtype))

    def forward(self, indices: dict[str, Tensor], vectors: Tensor) -> Tensor:
        values = sum(network.at(indices[name]) for name, network in self.networks.items())
        hidden = vectors + self.table(indices["cp"][:, 0])
        for layer in self.layers:
            hidden = hidden + torch.tanh(layer(hidden))
        return values * self.scale.sum() + hidden.sum(1)


def data(dtype: torch.dtype) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    indices = {
        name: torch.stack([torch.randint(size, (NUM_ENTRIES,), generator=generator) for size in shape], 1)
        for name, shape in SHAPES.items()
    }
    vectors, targets = (torch.randn(NUM_ENTRIES, *shape, generator=generator) for shape in ((12,), ()))
    return indices, vectors.to(dtype), targets.to(dtype)


BASES: dict[str, Callable[[nn.Module], Optimizer]] = {
    "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9),
    # Adam divides by the root of the mean square: its eps keeps gradients of rounding error alone from being steps.
    "adamw": lambda model: torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-3),
}
METHODS: dict[str, Callable[[nn.Module], Wrapper]] = {
    "sgd": lambda model: Plain(BASES["sgd"](model)),
    "adamw": lambda model: Plain(BASES["adamw"](model)),
    "sam": lambda model: distsam.SAM(BASES["sgd"](model), rho=0.05),
    "sam+das": lambda model: distsam.SAM(
        distsam.DAS(BASES["adamw"](model), distsam.core_networks(model), alpha=0.05), rho=0.05
    ),
}


@cache
def layout_of(plan: str) -> Layout:
    """Made once in a process that stays: every group of gloo has a thread that wakes a hundred times a second."""
    return make_layout(this_world(), PLANS[plan]())


def placed_zoo(plan: str, dtype: torch.dtype) -> tuple[nn.Module, Layout]:
    """The model on its plan; alone and whole without a process group."""
    model = Zoo(dtype)
    if not torch.distributed.is_initialized():
        return model, Layout.alone()
    layout = layout_of(plan)
    distsam.shard(model, layout.mesh, place_model(PLANS[plan](), model, layout.axes))
    return model, layout


def train_zoo(plan: str, method: str, dtype: str) -> dict[str, np.ndarray]:
    """Parameters by name after 10 steps, each data rank with its slice of the entries."""
    model, layout = placed_zoo(plan, getattr(torch, dtype))
    optimizer = METHODS[method](model)
    closure = closure_of(model, optimizer, layout, getattr(torch, dtype))
    for _ in range(STEPS):
        optimizer.step(closure)
    return {name: full(p) for name, p in model.named_parameters()}


def train_zoo_by_kernels(plan: str) -> tuple[dict[str, np.ndarray], int]:
    """`train_zoo` in float64 with DISTSAM_KERNELS=numba, and how many evaluations ran by them."""
    called = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(kernels.KERNELS, "numba")
        patch.setattr(distsam.tensornet.entries, "product_sum", lambda *a: called.append(a) or kernels.product_sum(*a))
        return train_zoo(plan, "sam", "float64"), len(called)


def closure_of(model: nn.Module, optimizer: Wrapper, layout: Layout, dtype: torch.dtype) -> Callable[[], Tensor]:
    """Gradients of this data rank's part of the loss."""
    indices, vectors, targets = data(dtype)
    own = slice(layout.data_rank, None, layout.data_size)
    mine = {name: rows[own] for name, rows in indices.items()}

    def closure() -> Tensor:
        optimizer.zero_grad()
        errors = model(mine, vectors[own]) - targets[own]
        loss = errors.square().sum() * layout.data_size / NUM_ENTRIES
        loss.backward()
        return loss

    return closure


def train_half(plan: str, folder: Path, resumes: bool) -> dict[str, np.ndarray]:
    """Half of the steps by SAM around AdamW and DAS, then a checkpoint; or the other half, from it. The parameters."""
    model, layout = placed_zoo(plan, torch.float64)
    optimizer = METHODS["sam+das"](model)
    engine, checkpointer = NativeEngine(model, optimizer), Checkpointer(folder, 1, layout.world.rank)
    if resumes:
        newest, _ = checkpointer.newest()
        assert newest is not None
        shapes, weights = tensor_shapes(newest), engine.weights()
        checkpointer.load(newest, {**weights, **engine.allocate_state(shapes)})
        engine.put_weights(weights)
    closure = closure_of(model, optimizer, layout, torch.float64)
    for _ in range(STEPS // 2):
        optimizer.step(closure)
    checkpointer.save(STEPS if resumes else STEPS // 2, {**engine.weights(), **engine.state_tensors()}, {})
    checkpointer.wait()
    return {name: full(p) for name, p in model.named_parameters()}
