"""A distributed run equals the one-process reference, which is written here in plain torch."""

from typing import Any

import numpy as np
import pytest
import torch
from rank_cases import NUM_ENTRIES, TwoNetworks, entries, train
from rank_pool import RankPool

RHO, LR, MOMENTUM, STEPS = 0.1, 0.05, 0.9, 20
# Sums over shards round differently: a few units in the last place per step, over 20 steps.
TOLERANCE = {"float64": 1e-12, "float32": 1e-6}
PLACES = [("replicate", 1), ("fsdp", 1)]


def reference(method: str, dtype: torch.dtype) -> list[np.ndarray]:
    """SGD with momentum, plain or by SAM's definition, on all entries at once; nothing of distsam but the model."""
    model = TwoNetworks(dtype)
    params = list(model.parameters())
    velocity = [torch.zeros_like(p) for p in params]
    indices, values = entries(dtype)

    def gradient() -> list[torch.Tensor]:
        loss = (model(indices) - values).square().sum() / NUM_ENTRIES
        return list(torch.autograd.grad(loss, params))

    for _ in range(STEPS):
        grads = gradient()
        with torch.no_grad():
            clean = [p.clone() for p in params]
            if method == "sam":
                norm = torch.stack([g.double().square().sum() for g in grads]).sum().sqrt()
                for p, g in zip(params, grads, strict=True):
                    p.add_(g, alpha=float(RHO / norm))
        if method == "sam":
            grads = gradient()
        with torch.no_grad():
            for p, w, v, g in zip(params, clean, velocity, grads, strict=True):
                v.mul_(MOMENTUM).add_(g)
                p.copy_(w - LR * v)
    return [p.detach().numpy() for p in params]


def largest_difference(left: list[np.ndarray], right: list[np.ndarray]) -> float:
    """Largest difference of an entry, relative to the largest entry of the model.

    Not of its own parameter: the bias starts at 0.1 and ends near 0.01, so its rounding errors are those of 0.1.
    """
    scale = max(float(np.abs(b).max()) for b in right)
    return max(float(np.abs(a - b).max()) for a, b in zip(left, right, strict=True)) / scale


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("method", ["base", "sam"])
def test_one_process_equals_the_reference(method: str, dtype: str) -> None:
    got = train("replicate", 1, dtype, method)["parameters"]
    assert largest_difference(got, reference(method, getattr(torch, dtype))) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("method", ["base", "sam"])
@pytest.mark.parametrize(("plan", "replicas"), PLACES)
def test_two_ranks_equal_the_reference(two_ranks: RankPool, plan: str, replicas: int, method: str, dtype: str) -> None:
    for answer in two_ranks.run(train, plan, replicas, dtype, method):
        assert largest_difference(answer["parameters"], reference(method, getattr(torch, dtype))) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("plan", "replicas"), [*PLACES, ("fsdp", 2)])
def test_four_ranks_equal_the_reference_under_sam(four_ranks: RankPool, plan: str, replicas: int, dtype: str) -> None:
    for answer in four_ranks.run(train, plan, replicas, dtype, "sam"):
        assert largest_difference(answer["parameters"], reference("sam", getattr(torch, dtype))) < TOLERANCE[dtype]


def test_the_reference_tells_sam_from_plain_steps() -> None:
    plain, sam = reference("base", torch.float64), reference("sam", torch.float64)
    assert largest_difference(sam, plain) > 1e-3


@pytest.mark.parametrize("method", ["das", "nbar", "obar", "sam+das", "sam:network", "sam:core"])
@pytest.mark.parametrize(("plan", "replicas"), PLACES)
def test_every_method_on_two_ranks_equals_one_process(
    two_ranks: RankPool, plan: str, replicas: int, method: str
) -> None:
    alone = train("replicate", 1, "float64", method)
    plain = train("replicate", 1, "float64", "base")
    assert largest_difference(alone["parameters"], plain["parameters"]) > 1e-4
    for answer in two_ranks.run(train, plan, replicas, "float64", method):
        assert largest_difference(answer["parameters"], alone["parameters"]) < 1e-12
        assert_same_numbers(answer["snapshot"], alone["snapshot"])


def test_the_four_rank_mesh_gives_the_snapshot_of_one_process(four_ranks: RankPool) -> None:
    alone = train("replicate", 1, "float64", "sam")["snapshot"]
    for answer in four_ranks.run(train, "fsdp", 2, "float64", "sam"):
        assert_same_numbers(answer["snapshot"], alone)


def assert_same_numbers(left: dict[str, Any], right: dict[str, Any]) -> None:
    assert left.keys() == right.keys()
    for name, value in right.items():
        if value is None:
            assert left[name] is None, name
        elif name.endswith("measured_rate"):
            # A difference of two Q over one step, divided by the rate: rounding of Q is amplified by Q / (eta dQ).
            assert left[name] == pytest.approx(value, rel=1e-7, abs=1e-7), name
        else:
            assert left[name] == pytest.approx(value, rel=1e-10, abs=1e-12), name
