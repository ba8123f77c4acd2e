"""Native plans and DeepSpeed's stages side by side: time of a SAM step, and what a rank holds of weights and state.

    pip install -e '.[deepspeed]'
    OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node 2 tests/benchmarks/engines.py [--steps 20] [--width 512]

One model (a linear stack beside a tensor train), one SAM(AdamW) step over the same batch, float32. The contenders take
turns within a round, in an order that rotates; the median over rounds, and the median of the ratio to native fsdp
within a round. Bytes are those of all tensors that this rank holds at the moment when the base optimizer makes its
second step: weights as passes read them, the copy that DeepSpeed steps, gradients (of both passes), optimizer state,
SAM's copy of the weights, and the rest.
"""

import argparse
import gc
import statistics
import time
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

import distsam
from distsam.engine import NativeEngine
from distsam.engine.deepspeed import library
from distsam.engine.deepspeed.engine import DeepSpeedEngine
from distsam.sharding import PLANS, close_world, local_tensor, make_layout, open_world, shard

CONTENDERS = ("native replicate", "native fsdp", "deepspeed 0", "deepspeed 1", "deepspeed 2", "deepspeed 3")
COLUMNS = ("weights", "stepped copy", "gradients", "state", "SAM's copy", "rest")


class Model(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(*[nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(4)])
        self.network = distsam.TensorNetwork(distsam.tt((width, 64, width), 16))

    def forward(self, x: Tensor, indices: Tensor) -> Tensor:
        return self.layers(x).mean(1) + self.network(indices)


def build(name: str, width: int, world: Any) -> tuple[nn.Module, Any, Any]:
    kind, word = name.split()
    model: nn.Module = Model(width)
    if kind == "native":
        layout = make_layout(world, PLANS[word]())
        if layout.mesh is not None:
            model = shard(model, layout.mesh, word)
    optimizer = distsam.SAM(torch.optim.AdamW(model.parameters(), lr=1e-3), rho=0.01)
    if kind == "native":
        return model, optimizer, NativeEngine(model, optimizer)
    return model, optimizer, DeepSpeedEngine(model, optimizer, stage=int(word))


Storages = dict[int, int]


def storages(tensors: Iterable[Any]) -> Storages:
    """Address -> bytes of what lies under these tensors on this rank."""
    local = [local_tensor(t) for t in tensors if isinstance(t, Tensor)]
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in local if t.device.type == "cpu"}


def alive() -> Storages:
    """Of every tensor that there is, gradients included."""
    tensors = [found for found in gc.get_objects() if issubclass(type(found), Tensor)]
    return storages([*tensors, *(t.grad for t in tensors if t.is_leaf)])


def bytes_held(name: str, width: int, world: Any, loss_of: Callable[[nn.Module], Callable[[], Tensor]]) -> list[int]:
    """The columns, of one contender alone."""
    gc.collect()
    before = alive()
    model, optimizer, engine = build(name, width, world)
    zero, found = getattr(engine, "_zero", None), []
    base = optimizer.base_optimizer
    step = base.step

    def look_and_step() -> None:
        everything = {at: size for at, size in alive().items() if at not in before}
        parts = list(library.parts_of(zero)) if zero is not None else []
        weights = storages([*model.parameters(), *(getattr(p, "ds_tensor", None) for p in parts)])
        copies = storages(part.flat for part in library.parts_of(zero).values()) if zero is not None else {}
        state = storages(value for values in optimizer.state.values() for value in values.values())
        saved = storages(optimizer._perturbation._saved)
        # What the pieces of the second pass lie in, and what the guard has of the first.
        gradients = storages(optimizer.guard.meter.pieces.gradients()) | storages(first)
        found[:] = [sum(column.values()) for column in (weights, copies, gradients, state, saved)]
        known = {**weights, **copies, **gradients, **state, **saved}
        found.append(sum(size for at, size in everything.items() if at not in known))
        step()

    def keep(sweep: Any) -> Any:
        first[:] = sweep.grads
        return epsilon(sweep)

    first: list[Any] = []
    epsilon, optimizer.ascent.epsilon = optimizer.ascent.epsilon, keep
    base.step = look_and_step
    for _ in range(2):
        engine.step([loss_of(model)])
    return found


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--width", type=int, default=512)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    world = open_world("cpu")
    generator = torch.Generator().manual_seed(world.rank)
    x = torch.randn(64, options.width, generator=generator)
    indices = torch.stack([torch.randint(n, (64,), generator=generator) for n in (options.width, 64, options.width)], 1)

    def loss_of(model: nn.Module) -> Callable[[], Tensor]:
        return lambda: model(x, indices).square().mean()

    held = {name: bytes_held(name, options.width, world, loss_of) for name in CONTENDERS}
    runs = {name: build(name, options.width, world) for name in CONTENDERS}

    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(options.steps):
        for name in CONTENDERS[turn % len(CONTENDERS) :] + CONTENDERS[: turn % len(CONTENDERS)]:
            model, _, engine = runs[name]
            began = time.perf_counter()
            engine.step([loss_of(model)])
            times[name].append(time.perf_counter() - began)
    if world.rank == 0:
        whole = 4 * sum(p.numel() for p in Model(options.width).parameters())
        print(f"{world.world_size} ranks, {whole / 2**20:.2f} MiB of weights; MiB on rank 0")
        print(f"{'':17}" + "".join(f"{column:>14}" for column in (*COLUMNS, "together", "ms a step", "x fsdp")))
        for name in CONTENDERS:
            ratio = statistics.median(t / f for t, f in zip(times[name], times["native fsdp"], strict=True))
            numbers = [b / 2**20 for b in (*held[name], sum(held[name]))]
            row = [*numbers, 1000 * statistics.median(times[name]), ratio]
            print(f"{name:17}" + "".join(f"{number:14.2f}" for number in row))
    close_world()


if __name__ == "__main__":
    main()
