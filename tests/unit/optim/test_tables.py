"""What is computed of all cores' norms: the host's floats and the accelerator's tensors give the same."""

import pytest
import torch
from torch import Tensor, nn

import distsam
from distsam.balance import FirstPass
from distsam.optim.bar import SignRule
from distsam.optim.das import DeviationRule
from distsam.optim.rescale import Rescale
from distsam.optim.table import DeviceTable, HostTable, TableCache
from distsam.tensornet import CoreNetwork

GAMMA = [4.0, 1.0, 0.5, 0.25, 3.0, 2.0]
# A relative change of 1e-9 and below: float32 would have none.
RATE = 1e-8
NORMS_SQ = [2.0, 1.5, 0.7, 1.1, 0.9, 0.3]
SPEC = distsam.cp((2, 2), 1)  # nothing here asks about it
# The third core belongs to no network of the rule; the networks are of 3 and 2 cores.
ROWS = [[0, 1, 3], [5, 4]]


def passes(gamma: list[float], norms_sq: list[float]) -> tuple[list[CoreNetwork], FirstPass, FirstPass]:
    """Networks, and the same pass as one of the host and as one of a device."""
    cores = [nn.Parameter(torch.zeros(1)) for _ in gamma]
    position = {id(core): k for k, core in enumerate(cores)}
    networks = [CoreNetwork(f"n{i}", tuple(cores[k] for k in row), SPEC) for i, row in enumerate(ROWS)]
    values = [*gamma, *norms_sq, 0.1, 0.0]
    host = FirstPass(values, len(gamma), len(gamma), True, position)
    device = FirstPass(torch.tensor(values, dtype=torch.float64), len(gamma), len(gamma), True, position)
    return networks, host, device


def growth_of(
    rule: Rescale, first: FirstPass, networks: list[CoreNetwork], is_moved: tuple[bool, ...], alpha: float | list[float]
) -> Tensor:
    table = TableCache(networks).get(first, is_moved)
    assert isinstance(table, HostTable if first.is_on_cpu else DeviceTable)
    strength = alpha if isinstance(alpha, float) else table.spread(torch.tensor(alpha, dtype=torch.float64))
    growth = rule.growth(first, table, strength, RATE)
    changes = table.factors(table.each(lambda g, eta: g * eta, growth, RATE))
    # Of a tensor not what it is cast to, but what it is.
    assert all(isinstance(factor, float) or factor.dtype == torch.float64 for factor in changes)
    factors = torch.stack([torch.as_tensor(f, dtype=torch.float64) for f in changes])
    whole = table.unfold(growth, torch.zeros(len(GAMMA), dtype=torch.float64))
    torch.testing.assert_close(factors, 1 + whole[list(table.places)] * RATE, rtol=1e-15, atol=0)
    return whole


@pytest.mark.parametrize("is_moved", [(True,) * 5, (True, False, True, True, True), (True, True, True, False, False)])
@pytest.mark.parametrize(
    "rule",
    [
        *(
            lambda norm=norm, bound=bound: DeviationRule(norm, bound)
            for norm in ("cores", "global", "network")
            for bound in (0.9, 1e-9)
        ),
        lambda: SignRule("nbar"),
        lambda: SignRule("obar"),
    ],
)
@pytest.mark.parametrize("norms_sq", [NORMS_SQ, [0.0, *NORMS_SQ[1:]], [1e-320, *NORMS_SQ[1:]]])
@pytest.mark.parametrize("alpha", [0.5, [0.5, 0.5, 0.1, 0.2, 0.0]])
def test_host_and_device_agree(
    rule: type[Rescale], is_moved: tuple[bool, ...], norms_sq: list[float], alpha: float | list[float]
) -> None:
    networks, host, device = passes(GAMMA, norms_sq)
    one, other = rule(), rule()
    growth = growth_of(one, host, networks, is_moved, alpha)
    # A few operations of float64 in another order.
    torch.testing.assert_close(growth_of(other, device, networks, is_moved, alpha), growth, rtol=1e-14, atol=1e-16)
    assert {k: int(v) for k, v in one.counts().items()} == {k: int(v) for k, v in other.counts().items()}
    moved = [k for k, is_in in zip([k for row in ROWS for k in row], is_moved, strict=True) if is_in]
    assert growth.isfinite().all()
    assert growth.count_nonzero() >= 1
    assert set(growth.nonzero().flatten().tolist()) <= set(moved)


def test_gradients_of_zero_change_nothing_on_either() -> None:
    networks, host, device = passes([0.0] * len(GAMMA), NORMS_SQ)
    for first in (host, device):
        assert growth_of(DeviationRule("cores", 0.1), first, networks, (True,) * 5, 0.5).count_nonzero() == 0
