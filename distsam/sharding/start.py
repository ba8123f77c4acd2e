"""The start of networks whose cores are still to be drawn: each rank draws the pieces that it holds, and no more."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from distsam.errors import ArgumentError
from distsam.sharding.collectives import all_reduce_sum_
from distsam.sharding.local import local_tensor
from distsam.sharding.ownership import owns
from distsam.sharding.plan import ShardPlan
from distsam.tensornet import TensorNetwork


def deferred_networks(model: nn.Module) -> list[TensorNetwork]:
    """Those of which no core has a number yet; see `deferred_draws`."""
    return [module for module in model.modules() if isinstance(module, TensorNetwork) and module.is_deferred]


def make_room(model: nn.Module) -> None:
    """Give every piece of a deferred core memory, filled with zeros, where its network wanted to be.

    Whole cores or pieces alike; call it before anything keeps hold of a parameter. No collective.
    """
    for network in deferred_networks(model):
        device = network.drawn_on
        room = {n: torch.zeros_like(p, device=device) for n, p in network.named_parameters() if p.is_meta}
        # FSDP2 takes over what is loaded in this way.
        network.load_state_dict(room, strict=False, assign=True)


@torch.no_grad()
def draw_pieces(
    networks: Sequence[TensorNetwork],
    plan: ShardPlan | None = None,
    names: dict[int, str] | None = None,
    coordinate: Sequence[int] = (),
) -> None:
    """Draw the start of these networks into the pieces of their cores.

    The numbers are the same bits whatever the plan, the factors of their norms too: sums of squares add up exactly.

    Args:
        networks: whose cores have room.
        plan: by which they are placed; None where they are whole and this process is alone.
        names: id of each core -> its name in the plan.
        coordinate: of this rank on the plan's axes.

    Collectives: one all_reduce of a float64 for each core of these networks; every rank calls it.

    Raises:
        ArgumentError: a start that its cores' dtype cannot hold; on every rank alike.
    """
    if not networks:
        return
    sums = torch.cat([_fill(network, plan, names or {}, coordinate) for network in networks])
    device = local_tensor(networks[0].cores[0]).device
    sums = all_reduce_sum_(sums.to(device)).cpu()
    for network, norms_sq in zip(networks, sums.split([len(n.cores) for n in networks]), strict=True):
        assert network.start is not None
        factors = network.start.factors(norms_sq)
        for core, factor, name in zip(network.cores, factors, network.spec.core_names, strict=True):
            _check_range(core.dtype, factor, name, network.start.std)
            local_tensor(core).mul_(factor)


def _fill(network: TensorNetwork, plan: ShardPlan | None, names: dict[int, str], coordinate: Sequence[int]) -> Tensor:
    """(K,) sums of squares of the raw numbers that count here: each number once in the world."""
    sums = torch.zeros(len(network.cores), dtype=torch.float64)
    assert network.start is not None
    for k, core in enumerate(network.cores):
        offsets: Sequence[int] = [0] * core.dim()
        if plan is not None:
            offsets, _ = plan.piece_of(names[id(core)], coordinate)
        norm_sq = network.start.fill_(k, local_tensor(core), offsets)
        if owns(core):
            sums[k] = norm_sq
    return sums


def _check_range(dtype: torch.dtype, factor: float, name: str, std: float) -> None:
    # The largest of many standard normal numbers is below 9, and most are above 0.01.
    info = torch.finfo(dtype)
    if not info.smallest_normal < factor < info.max / 9:
        raise ArgumentError("std", f"{std} gives a core {name} that {dtype} cannot hold; choose one nearer to 1")
