"""Native plans and DeepSpeed's stages side by side: time of a SAM step, and what a rank holds of weights and state.

    pip install -e '.[deepspeed]'
    OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node 2 tests/benchmarks/engines.py [--steps 20] [--width 512]

One model (a linear stack beside a tensor train), one SAM(AdamW) step over the same batch, float32. The contenders take
turns within a round, in an order that rotates; the median over rounds, and the median of the ratio to native fsdp
within a round. Bytes are those of this rank's tensors, at the moment when the base optimizer steps: weights as passes
read them, the copy that DeepSpeed steps, gradients, optimizer state, and SAM's copy of the weights.
"""

import argparse
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

CONTENDERS = ("native replicate", "native fsdp", "deepspeed 0", "deepspeed 1", "deepspeed 2")
COLUMNS = ("weights", "stepped copy", "gradients", "state", "SAM's copy")


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


def size(tensors: Iterable[Any]) -> int:
    """Bytes of the distinct storages of this rank."""
    local = [local_tensor(t) for t in tensors if isinstance(t, Tensor)]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in local}.values())


def bytes_held(name: str, model: nn.Module, optimizer: Any, engine: Any, loss: Callable[[], Tensor]) -> list[int]:
    found: list[int] = []
    base = optimizer.base_optimizer
    step = base.step

    def look_and_step() -> None:
        zero = getattr(engine, "_zero", None)
        copies = [] if zero is None else library.flat_groups(zero)
        gradients = [p.grad for p in model.parameters()]
        for parts in {} if zero is None else zero.averaged_gradients.values():
            gradients += list(parts)
        found.extend([size(model.parameters()), size(copies), size(gradients)])
        step()

    base.step = look_and_step
    engine.step([loss])
    del base.step
    state = [value for values in optimizer.state.values() for value in values.values()]
    return [*found, size(state), size(optimizer._perturbation._saved)]


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
    runs = {name: build(name, options.width, world) for name in CONTENDERS}

    def loss_of(model: nn.Module) -> Callable[[], Tensor]:
        return lambda: model(x, indices).square().mean()

    held = {name: bytes_held(name, *run, loss_of(run[0])) for name, run in runs.items()}
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
