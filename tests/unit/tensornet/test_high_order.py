"""Tensors of many modes: planning looks at a few cuts, and entries are right. Before, 70 modes were never planned."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import distsam
from distsam.tensornet.planner import plan_entries
from distsam.tensornet.spec import NetworkSpec

B = 6


def chain(order: int) -> NetworkSpec:
    """A tensor train as an einsum, its cores in an order that is not that of the chain."""
    cores = {k: (f"b{k}", f"i{k}", f"b{k + 1}") for k in range(order)}
    cores[0], cores[order - 1] = cores[0][1:], cores[order - 1][:2]
    names = [*range(0, order, 2), *range(1, order, 2)]
    sizes = {i: 4 if i.startswith("i") else 3 for core in cores.values() for i in core}
    modes = tuple(f"i{k}" for k in range(order))
    return NetworkSpec(
        "einsum", tuple(cores[k] for k in names), modes, tuple(sizes.items()), tuple(f"core{k}" for k in names)
    )


SPECS: dict[str, Callable[[int], NetworkSpec]] = {
    "cp": lambda order: distsam.cp((4,) * order, 3),
    "tt": lambda order: distsam.tt((4,) * order, 3),
    "tr": lambda order: distsam.tr((4,) * order, 3),
    "chain": chain,
}


def by_hand(spec: NetworkSpec, cores: list[Tensor], positions: Tensor) -> Tensor:
    """One entry after the other, core by core in the order of the modes."""
    values = []
    for entry in positions.tolist():
        place = dict(zip(spec.modes, entry, strict=True))
        slices = {}
        for core, indices in zip(cores, spec.cores, strict=True):
            [(axis, mode)] = [(n, i) for n, i in enumerate(indices) if i in place]
            slices[mode] = core.select(axis, place[mode])
        matrices = [slices[mode] for mode in spec.modes]
        if spec.format == "cp":
            values.append(torch.stack(matrices).prod(0).sum())
            continue
        result = matrices[0]
        for matrix in matrices[1:]:
            result = result @ matrix
        values.append(result.trace() if result.dim() else result)
    return torch.stack(values)


@pytest.mark.parametrize("order", [13, 40])
@pytest.mark.parametrize("name", SPECS)
def test_entries_and_gradients_of_many_modes_are_right(name: str, order: int) -> None:
    spec = SPECS[name](order)
    network = distsam.TensorNetwork(spec, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    positions = torch.randint(4, (B, order), generator=torch.Generator().manual_seed(1))
    cores = list(network.parameters())
    expected = by_hand(spec, cores, positions)
    grads = torch.autograd.grad(expected.sum(), cores)
    values = network.at(positions)
    # Sums of products of `order` factors: each rounds a relative 1e-16, and cancellation costs a few digits.
    torch.testing.assert_close(values, expected, rtol=1e-11, atol=1e-12 * float(expected.detach().abs().max()))
    for own, grad in zip(torch.autograd.grad(values.sum(), cores), grads, strict=True):
        torch.testing.assert_close(own, grad, rtol=1e-11, atol=1e-12 * float(grad.abs().max()))


@pytest.mark.parametrize("order", [100, 1000])
@pytest.mark.parametrize("name", SPECS)
def test_a_thousand_modes_are_planned_and_drawn(name: str, order: int) -> None:
    """Order 30 took 18 s to plan and order 50 took 155 s; all of these together take 3 s."""
    network = distsam.TensorNetwork(SPECS[name](order))
    assert network.at(torch.zeros((B, order), dtype=torch.int64)).isfinite().all()
    plan = plan_entries(network.spec, 100)
    assert sorted(k for group in plan.cut for k in group) == list(range(order))
    assert max(group.merge.multiply_adds for group in plan.groups) < 2**24
