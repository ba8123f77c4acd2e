"""What runs on every rank to look at `shard` itself: what it makes equal, averages, frees and refuses."""

from typing import Any

import numpy as np
import torch
from rank_cases import build, entries, full, plan_of, this_world
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import distsam
from distsam.balance import Meter
from distsam.sharding import Fsdp, LocalPieces, Reduction, ShardPlan, buckets, make_layout, replicate
from distsam.sharding.collectives import rank, world_size


def start_with_own_seed(plan: str) -> list[np.ndarray]:
    """Parameters and buffers after `shard`, of a model that every rank drew for itself; the first is rank 0's draw."""
    generator = torch.Generator().manual_seed(rank())
    model = distsam.TensorNetwork(distsam.tt((8, 4, 6), 4), generator=generator)
    model.register_buffer("shift", torch.full((2,), float(rank())))
    expected = distsam.TensorNetwork(distsam.tt((8, 4, 6), 4), generator=torch.Generator().manual_seed(0))
    distsam.shard(model, make_layout(this_world(), plan_of(plan)).mesh, plan)
    got = [full(p) for p in model.parameters()]
    drawn = [full(p) for p in expected.parameters()]
    return [np.array([np.array_equal(a, b) for a, b in zip(got, drawn, strict=True)]), full(model.shift)]


def evaluate_before_perturbed_forward() -> tuple[bool, bool]:
    """Whether a forward without backward, then one at perturbed weights, differ; and whether one after equals it."""
    model, optimizer, closure = build("fsdp", 1, torch.float64, "sam")
    indices, _ = entries(torch.float64)

    def evaluate() -> Tensor:
        with torch.no_grad():
            return model.first.at(indices).clone()

    optimizer.step(closure)
    closure()
    before = evaluate()
    with optimizer.perturbed():  # type: ignore[attr-defined]
        inside = evaluate()
    return torch.equal(before, inside), torch.equal(before, evaluate())


def average(bucket_bytes: int, dtypes: list[str]) -> dict[str, Any]:
    """Averaged gradients of five parameters with buckets of this size, and how many buckets there were."""
    kept = buckets.BUCKET_BYTES
    buckets.BUCKET_BYTES = bucket_bytes
    try:
        params = [nn.Parameter(torch.zeros(10, dtype=getattr(torch, d))) for d in dtypes]
        averager = replicate.GradientAverager(params)
    finally:
        buckets.BUCKET_BYTES = kept
    loss = sum(((k + 1) * (rank() + 1) * p.double()).sum() for k, p in enumerate(params))
    assert isinstance(loss, Tensor)
    loss.backward()
    return {
        "num_buckets": len(averager._buckets),
        "gradients": [full(p.grad.double()) for p in params if p.grad is not None],
    }


def average_halves(value: float) -> list[float]:
    """The averaged float16 gradient of a parameter whose gradient is `value` on every rank."""
    param = nn.Parameter(torch.zeros(3, dtype=torch.float16))
    averager = replicate.GradientAverager([param])
    (value * param).sum().backward()
    assert averager is not None
    assert param.grad is not None
    return param.grad.tolist()


def error_of_a_bfloat16_mean(plan: str) -> tuple[float, float]:
    """Of a network's gradient elements: the largest error as a share of what rounding allows, and the largest error."""
    size = world_size()

    def gradients(model: nn.Module, turns: list[int]) -> list[np.ndarray]:
        for turn in turns:
            indices = torch.randint(0, 12, (50, 3), generator=torch.Generator().manual_seed(turn))
            (model.at(indices) * torch.arange(50.0)).sum().backward()
        return [full(p.grad) for p in model.parameters() if p.grad is not None]

    def network() -> Any:
        return distsam.TensorNetwork(distsam.tt((12, 12, 12), 8), generator=torch.Generator().manual_seed(0))

    by_rank = [gradients(network(), [turn]) for turn in range(size)]
    model = network()
    reduction = Reduction(torch.bfloat16)
    distsam.shard(model, make_layout(this_world(), plan_of(plan)).mesh, plan, reduction=reduction)
    ratios, errors = [0.0], [0.0]
    for got, *parts in zip(gradients(model, [rank()]), *by_rank, strict=True):
        error = np.abs(got - np.mean(parts, axis=0))
        # What is rounded to 8 bits: each rank's part, each sum, and the mean where it is divided last. 2^-20 is of the
        # float32 with which this reference and FSDP2's padding compute.
        bound = ((1 + 2.0**-8) ** (size + 1) - 1 + 2.0**-20) * np.mean(np.abs(parts), axis=0)
        ratios.append(float((error[bound > 0] / bound[bound > 0]).max()))
        errors.append(float(error.max()))
    return max(ratios), max(errors)


def gradient_placed_otherwise() -> tuple[list[list[float]], list[str], float]:
    """Local pieces of a sharded parameter's replicated gradient, where it was put, and its squared norm."""
    mesh = init_device_mesh("cpu", (world_size(),))
    param = nn.Parameter(distribute_tensor(torch.zeros(4, dtype=torch.float64), mesh, [Shard(0)]))
    param.grad = distribute_tensor(torch.tensor([3.0, 0.0, 0.0, 4.0], dtype=torch.float64), mesh, [Replicate()])
    pieces = LocalPieces([param])
    grads = [g.tolist() for g in pieces.gradients() if g is not None]
    first, _ = Meter([param], []).first_pass(None)
    return grads, [str(p) for p in param.grad.placements], float(first.grad_norm_sq)


def measure_a_mesh_without_rank_0() -> str:
    """What is said of a parameter of which rank 0 has no piece."""
    mesh = init_device_mesh("cpu", (world_size(),))
    here = torch.distributed.device_mesh.DeviceMesh("cpu", [1])
    param = nn.Parameter(distribute_tensor(torch.ones(4), here, [Replicate()]))
    assert mesh.size() == world_size()
    try:
        LocalPieces([param])
    except ValueError as error:
        return str(error)
    return ""


def refusal_of(case: str) -> str:
    """What `shard` says of a model or a plan that it cannot serve; "" if nothing."""
    world = this_world()
    model = nn.ModuleList(distsam.TensorNetwork(distsam.cp((8, 4), 2)) for _ in range(2))
    plan: str | ShardPlan = "replicate" if case.startswith("replicate") else "fsdp"
    if case.endswith("shared core"):
        model[1].cores[0] = model[0].cores[0]
    if case == "shared with a layer":
        model = nn.Sequential(model[0], nn.Linear(2, 8, bias=False))
        model[1].weight = model[0].cores[0]
    if case == "mixed dtypes":
        model[1].cores[1] = nn.Parameter(model[1].cores[1].detach().double())
    if case == "not contiguous":
        model[1].cores[1] = nn.Parameter(torch.ones(2, 4).t())
    if case == "plan of another model":
        plan = Fsdp().place({"core": (8, 4)}, (("shard", world.world_size),))
    if case == "plan of another mesh":
        plan = Fsdp().place({n: p.shape for n, p in model.named_parameters()}, (("shard", 1),))
    try:
        distsam.shard(model, make_layout(world, Fsdp()).mesh, plan)
    except distsam.InputError as error:
        return str(error)
    return ""


def report_losses_and_flush() -> tuple[float, float, list[int]]:
    """The mean of a DTensor's loss and of one that ranks do not share; the steps that `flush` gives this rank."""
    mesh = init_device_mesh("cpu", (world_size(),))
    meter = Meter([nn.Parameter(torch.ones(2))], [])
    placed = distribute_tensor(torch.tensor(3.0), mesh, [Replicate()])
    losses = [meter.first_pass(loss, False)[0].loss for loss in (placed, float(rank()))]
    model, optimizer, closure = build("replicate", 1, torch.float64, "sam")
    coordinator = distsam.BalanceCoordinator(model, optimizer)
    optimizer.step(closure)
    return float(losses[0]), float(losses[1]), [step for step, _ in coordinator.flush()]  # type: ignore[arg-type]


class Matrix(nn.Module):
    """A network that is no TensorNetwork: T = A B, by a method of its own."""

    entry_points = ("product",)

    def __init__(self) -> None:
        super().__init__()
        self.spec = distsam.tt((4, 6), 2)
        generator = torch.Generator().manual_seed(0)
        shapes = self.spec.core_shapes
        self.cores = nn.ParameterList(torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)

    def product(self) -> Tensor:
        left, right = self.cores
        return left @ right + 0.0  # no view


def shard_a_network_of_ones_own() -> tuple[bool, bool, bool]:
    """Whether its cores are cut, its method gathers them, and their gradients are those of one process."""
    whole, model = Matrix(), Matrix()
    distsam.shard(model, make_layout(this_world(), Fsdp()).mesh, "fsdp")
    results = [m.product() for m in (whole, model)]
    for result in results:
        result.square().sum().backward()
    pairs = list(zip(whole.cores, model.cores, strict=True))
    return (
        all(hasattr(core, "full_tensor") for _, core in pairs),
        bool(torch.equal(*results)),
        all(np.allclose(full(a.grad), full(b.grad), rtol=1e-12) for a, b in pairs),
    )
