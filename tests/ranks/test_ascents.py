"""Ascents, groups and clipping on one process and two ranks, against the same written here in plain torch."""

import numpy as np
import pytest
import torch
from ascent_cases import LR, MOMENTUM, perturb_groups, train
from rank_cases import NUM_ENTRIES, TwoNetworks, entries
from rank_pool import RankPool
from torch import Tensor

STEPS = 10
PLANS = ["replicate", "fsdp"]
SHIFT = 0.01


class Reference:
    """SGD with momentum on all entries at once; nothing of distsam but the model."""

    def __init__(self) -> None:
        self.model = TwoNetworks(torch.float64)
        self.params = list(self.model.parameters())
        self.velocity = [torch.zeros_like(p) for p in self.params]
        self.indices, self.values = entries(torch.float64)

    def gradient(self) -> list[Tensor]:
        loss = (self.model(self.indices) - self.values).square().sum() / NUM_ENTRIES
        return list(torch.autograd.grad(loss, self.params))

    @torch.no_grad()
    def descend(self, grads: list[Tensor]) -> None:
        for p, v, g in zip(self.params, self.velocity, grads, strict=True):
            p -= LR * v.mul_(MOMENTUM).add_(g)

    def gradient_at(self, epsilon: list[Tensor]) -> list[Tensor]:
        kept = [p.detach().clone() for p in self.params]
        with torch.no_grad():
            torch._foreach_add_(self.params, epsilon)
        grads = self.gradient()
        with torch.no_grad():
            torch._foreach_copy_(self.params, kept)
        return grads

    def after(self) -> list[np.ndarray]:
        return [p.detach().numpy() for p in self.params]


def norm(tensors: list[Tensor]) -> Tensor:
    return torch.stack([t.square().sum() for t in tensors]).sum().sqrt()


def asam() -> list[np.ndarray]:
    run = Reference()
    for _ in range(STEPS):
        g = run.gradient()
        scale = [p.detach().abs() + SHIFT for p in run.params]
        length = norm([t * x for t, x in zip(scale, g, strict=True)])
        run.descend(run.gradient_at([0.5 * t * t * x / length for t, x in zip(scale, g, strict=True)]))
    return run.after()


def memory(clip_norm: float | None = None) -> list[np.ndarray]:
    run, kept = Reference(), []
    for step in range(STEPS):
        grads = run.gradient()
        if step % 3 == 0:
            length = norm(grads)
            kept = grads = run.gradient_at([0.1 * x / length for x in grads])
        else:
            grads = [x + k / 2 for x, k in zip(grads, kept, strict=True)]
        if clip_norm is not None:
            grads = [x * min(1.0, clip_norm / (float(norm(grads)) + 1e-6)) for x in grads]
        run.descend(grads)
    return run.after()


def assert_close(got: list[np.ndarray], expected: list[np.ndarray]) -> None:
    scale = max(float(np.abs(b).max()) for b in expected)
    assert max(float(np.abs(a - b).max()) for a, b in zip(got, expected, strict=True)) / scale < 1e-12


@pytest.mark.parametrize("method", ["asam", "memory"])
def test_another_ascent_in_one_process_equals_the_reference(method: str) -> None:
    assert_close(train("replicate", method, STEPS)["parameters"], {"asam": asam, "memory": memory}[method]())


@pytest.mark.parametrize("method", ["asam", "memory"])
@pytest.mark.parametrize("plan", PLANS)
def test_another_ascent_on_two_ranks_equals_the_reference(two_ranks: RankPool, plan: str, method: str) -> None:
    expected = {"asam": asam, "memory": memory}[method]()
    for answer in two_ranks.run(train, plan, method, STEPS):
        assert_close(answer["parameters"], expected)
        if method == "memory":
            assert answer["counters"]["memory/num_second"] == 4


def clipped(method: str, clip_norm: float) -> tuple[list[np.ndarray], float]:
    """By torch.nn.utils.clip_grad_norm_ between the last pass and the base's step."""
    run = Reference()
    for _ in range(STEPS):
        g = run.gradient()
        length = norm(g)
        with torch.no_grad():
            rescales = das_factors(run, g) if method == "das" else []
        h = run.gradient_at([0.1 * x / length for x in g]) if method == "sam" else g
        for p, x in zip(run.params, h, strict=True):
            p.grad = x.clone()
        torch.nn.utils.clip_grad_norm_(run.params, clip_norm)
        clipped_grads = [p.grad for p in run.params if p.grad is not None]
        with torch.no_grad():
            for p, factor in zip(run.params[1:], rescales, strict=False):
                p *= factor
        run.descend(clipped_grads)
    return run.after(), float(norm(clipped_grads))


def das_factors(run: Reference, g: list[Tensor]) -> list[Tensor]:
    """1 + lambda of the cores, which stand behind the bias, by the gradient before it is clipped."""
    counts = [4, 3]
    gamma = torch.stack([x.square().sum() for x in g[1:]])
    s = torch.stack([p.square().sum() for p in run.params[1:]])
    factors: list[Tensor] = []
    for gammas, norms_sq in zip(gamma.split(counts), s.split(counts), strict=True):
        lam = LR * 0.5 / gamma.sum().sqrt() * (gammas - gammas.mean()) / norms_sq
        factors += (1 + lam * min(1.0, 0.1 / float(lam.abs().max()))).unbind()
    return factors


@pytest.mark.parametrize("clip_norm", [0.05, 1e3])
@pytest.mark.parametrize("method", ["base", "sam", "das"])
def test_clip_norm_is_that_of_torch(two_ranks: RankPool, method: str, clip_norm: float) -> None:
    expected, length = clipped(method, clip_norm)
    alone = train("replicate", method, STEPS, clip_norm)
    answers = [a for plan in PLANS for a in two_ranks.run(train, plan, method, STEPS, clip_norm)]
    assert len(answers) == 4
    for answer in [alone, *answers]:
        assert_close(answer["parameters"], expected)
        assert answer["grad_norm"] == pytest.approx(length, rel=1e-12)
        assert (answer["grad_norm"] == pytest.approx(clip_norm, rel=1e-4)) == (clip_norm < 1)


def test_a_combined_gradient_is_clipped_by_its_own_norm(two_ranks: RankPool) -> None:
    expected = memory(clip_norm=0.05)
    for answer in [train("replicate", "memory", STEPS, 0.05), *two_ranks.run(train, "fsdp", "memory", STEPS, 0.05)]:
        assert_close(answer["parameters"], expected)


@pytest.mark.parametrize("rhos", [(0.0, 0.3), (0.2, 0.3)])
def test_each_group_is_perturbed_by_its_own_rho(two_ranks: RankPool, rhos: tuple[float, float]) -> None:
    """The norm is that of all gradients, also of those that a rho of 0 leaves in their place."""
    run = Reference()
    g = run.gradient()
    expected = [(rhos[0] if 1 <= k < 5 else rhos[1]) * x / norm(g) for k, x in enumerate(g)]
    answers = [perturb_groups("replicate", rhos), *(m for p in PLANS for m in two_ranks.run(perturb_groups, p, rhos))]
    for moved in answers:
        for a, b in zip(moved, expected, strict=True):
            np.testing.assert_allclose(a, b.numpy(), rtol=1e-9, atol=1e-15)
        assert all(np.any(a) == (rhos[0] > 0) for a in moved[1:5])
