"""A perturbation finds the weights where they are: storage, precision and the set that moves may change."""

import pytest
import torch
from torch import Tensor, nn

import distsam
from distsam.optim.perturbation import CHUNK


def sam_over(params: list[nn.Parameter]) -> distsam.SAM:
    return distsam.SAM(torch.optim.SGD(params, lr=0.1), rho=0.5)


def perturb(sam: distsam.SAM, moving: list[nn.Parameter], inside: object = None) -> None:
    """Enter and leave; asserts that exactly `moving` moved and that every bit is back."""
    params = [p for group in sam.param_groups for p in group["params"]]
    before = [p.detach().clone() for p in params]
    for p in params:
        p.grad = torch.randn_like(p) if any(p is m for m in moving) else None
    with sam.perturbed():
        for p, w in zip(params, before, strict=True):
            assert torch.equal(p, w) != any(p is m for m in moving)
        if callable(inside):
            inside()
    assert all(torch.equal(p, w) and p.dtype == w.dtype for p, w in zip(params, before, strict=True))


def parameters(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in shapes]


def test_weights_come_back_when_their_storage_was_exchanged_between_steps() -> None:
    params = parameters((3, 4), (5,))
    sam = sam_over(params)
    perturb(sam, params)
    for p in params:
        p.data = torch.randn_like(p)
    perturb(sam, params)


def test_weights_come_back_when_their_storage_was_exchanged_inside() -> None:
    params = parameters((3, 4), (5,))

    def exchange() -> None:
        for p in params:
            p.data = p.data.clone()

    perturb(sam_over(params), params, exchange)


@pytest.mark.parametrize(("first", "then"), [("bfloat16", "float32"), ("float32", "float64"), ("float64", "float16")])
def test_weights_come_back_after_a_change_of_precision(first: str, then: str) -> None:
    model = nn.Linear(6, 3).to(getattr(torch, first))
    params = list(model.parameters())
    sam = sam_over(params)
    perturb(sam, params)
    model.to(getattr(torch, then))
    perturb(sam, params)


def test_each_step_may_move_other_parameters() -> None:
    params = parameters((3, 4), (4, 3), (2,))
    sam = sam_over(params)
    for moving in ([0, 1], [0, 2], [1, 2], [], [0, 1, 2]):
        perturb(sam, [params[i] for i in moving])


def test_a_coordinator_attached_between_steps_changes_the_order_and_no_weight() -> None:
    network = distsam.TensorNetwork(distsam.cp((4, 3, 5), 2))
    params = [*parameters((2, 4)), *network.parameters()]
    sam = sam_over(params)
    perturb(sam, params)
    distsam.BalanceCoordinator(network, sam)
    perturb(sam, params)


def test_chunks_of_many_and_of_large_tensors_move_all_alike() -> None:
    params = parameters((CHUNK // 2,), (CHUNK // 2 - 1,), (2,), (CHUNK + 3,), (1,), (0,), dtype=torch.float64)
    sam = sam_over(params)
    grads: list[Tensor] = [torch.ones_like(p) for p in params]
    before = [p.detach().clone() for p in params]
    for p, g in zip(params, grads, strict=True):
        p.grad = g
    each = 0.5 / sum(p.numel() for p in params) ** 0.5
    with sam.perturbed():
        for p, w in zip(params, before, strict=True):
            torch.testing.assert_close(p.detach() - w, torch.full_like(w, each), rtol=1e-9, atol=1e-15)
    assert all(torch.equal(p, w) for p, w in zip(params, before, strict=True))


def test_weights_come_back_bit_for_bit_in_another_precision_than_the_last_time() -> None:
    """The buffers of the first time would keep half of the digits."""
    model = torch.nn.Linear(5, 3)
    sam = distsam.SAM(torch.optim.SGD(model.parameters(), lr=0.1))
    for dtype in (torch.float32, torch.float64):
        model.to(dtype)
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.rand(p.shape, dtype=dtype))
                p.grad = torch.rand_like(p)
        before = [p.detach().clone() for p in model.parameters()]
        with sam.perturbed():
            assert not torch.equal(model.weight, before[0])
        assert all(torch.equal(p, w) for p, w in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize(("dtype", "rho"), [(torch.float32, 1e200), (torch.float16, 1e6), (torch.bfloat16, 1e200)])
def test_a_radius_beyond_the_dtype_skips_the_step_and_keeps_the_weights(dtype: torch.dtype, rho: float) -> None:
    """It ended in torch's "value cannot be converted to type float without overflow"."""
    params = parameters((3, 2), (4,), dtype=dtype)
    before = [p.detach().clone() for p in params]
    sam = distsam.SAM(torch.optim.SGD(params, lr=0.1), rho=rho)

    def closure() -> Tensor:
        sam.zero_grad()
        loss = torch.stack([p.square().sum() for p in params]).sum()
        loss.backward()
        return loss

    sam.step(closure)
    assert sam.num_skipped == 1
    assert all(torch.equal(p, w) for p, w in zip(params, before, strict=True))
