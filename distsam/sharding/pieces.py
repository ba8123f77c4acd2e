"""Leave each rank its pieces of the cores, cut along bonds or by rows, and have the networks contracted in pieces."""

from collections.abc import Iterable, Mapping
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard

from distsam.errors import ArgumentError
from distsam.sharding.cut_cores import CutCores, Rows
from distsam.sharding.moves import AxisRanks
from distsam.sharding.plan import NetworkWeights, ShardPlan
from distsam.sharding.ranges import remember_ranges
from distsam.tensornet import Contractor, NetworkModule, as_network


class CuttableNetwork(NetworkModule, Protocol):
    """A NetworkModule that leaves its contractions to whom it is told to; `TensorNetwork` is one."""

    def contract_with(self, contractor: Contractor) -> None: ...


def cuttable_networks(model: nn.Module) -> list[CuttableNetwork]:
    """The networks that can be contracted in pieces."""
    found = (as_network(module) for module in model.modules())
    return [cast(CuttableNetwork, n) for n in found if n is not None and hasattr(n, "contract_with")]


def network_weights(model: nn.Module) -> list[NetworkWeights]:
    """What a plan may know of these networks; those with a core that is frozen, or shared, are left out."""
    names = {id(p): name for name, p in model.named_parameters()}
    networks = cuttable_networks(model)
    uses = [id(core) for network in networks for core in network.cores]
    return [
        NetworkWeights(network.spec, tuple(names[id(core)] for core in network.cores))
        for network in networks
        if all(core.requires_grad and uses.count(id(core)) == 1 for core in network.cores)
    ]


def cut_cores(model: nn.Module, mesh: DeviceMesh, plan: ShardPlan) -> None:
    """Replace each core that `plan` cuts along one of its `piece_axes` by a DTensor of this rank's piece.

    Cores on the meta device get pieces there.

    Args:
        model: with whole parameters.
        mesh: of all axes of the plan.
        plan: made for the model.

    Raises:
        ArgumentError: the plan cuts a parameter that is no core of a network which can be contracted in pieces, or cuts
            it along a mode where it must be a bond, or the reverse.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    cut = {name for axis in plan.piece_axes for name in plan.parameters_cut_by(axis)}
    own = mesh[plan.piece_axes]
    if plan.routed is not None:
        axis, bounds = plan.routed
        remember_ranges(own, plan.piece_axes.index(axis), bounds)
    contractors = _contractors(model, names, mesh, plan, cut)
    pieces = {
        id(p): nn.Parameter(_piece(p.detach(), names[id(p)], own, plan), p.requires_grad)
        for p in model.parameters()
        if names[id(p)] in cut
    }
    _replace(model.modules(), pieces)
    for network, contractor in contractors:
        network.contract_with(contractor)


def _contractors(
    model: nn.Module, names: Mapping[int, str], mesh: DeviceMesh, plan: ShardPlan, cut: set[str]
) -> list[tuple[CuttableNetwork, CutCores]]:
    found, known = [], set[str]()
    for network in cuttable_networks(model):
        parameters = [names[id(core)] for core in network.cores]
        known.update(parameters)
        if cut.intersection(parameters):
            found.append((network, _contractor(network, parameters, mesh, plan)))
    if others := sorted(cut - known):
        problem = f"cuts {others[0]} on an axis whose ranks keep their pieces; only cores of a TensorNetwork can be"
        raise ArgumentError("plan", problem)
    return found


def _contractor(network: CuttableNetwork, parameters: list[str], mesh: DeviceMesh, plan: ShardPlan) -> CutCores:
    spec, ranks, rows = network.spec, AxisRanks(None, 1, 0), None
    bonds: list[str | None] = [None] * spec.num_cores
    for axis in plan.piece_axes:
        indices = _indices_cut_by(axis, network, parameters, plan)
        here = AxisRanks(mesh[axis].get_group(), mesh[axis].size(), mesh[axis].get_local_rank())
        if axis in plan.contracted_axes:
            ranks, bonds = here, indices
        elif row_modes := [index for index in indices if index is not None]:
            [mode] = row_modes
            rows = Rows(mode, *plan.range_along(axis, spec.size(mode), here.position), here)
    return CutCores(spec, bonds, ranks, rows)


def _indices_cut_by(axis: str, network: CuttableNetwork, parameters: list[str], plan: ShardPlan) -> list[str | None]:
    """For every core the index along which the axis cuts it, or None."""
    place = [name for name, _ in plan.axes].index(axis)
    dims = [plan.dims_of(name)[place] for name in parameters]
    indices = [None if dim is None else core[dim] for core, dim in zip(network.spec.cores, dims, strict=True)]
    wants_bond = axis in plan.contracted_axes
    for name, index in zip(parameters, indices, strict=True):
        if index is not None and (index in network.spec.modes) == wants_bond:
            kind, wanted = ("mode", "bond") if wants_bond else ("bond", "mode")
            raise ArgumentError("plan", f"cuts {name} along the {kind} {index} on axis {axis}; cut a {wanted} there")
    return indices


def _piece(whole: Tensor, name: str, mesh: DeviceMesh, plan: ShardPlan) -> Tensor:
    own, placements = whole, list[Placement]()
    dims = dict(zip((axis for axis, _ in plan.axes), plan.dims_of(name), strict=True))
    for axis in plan.piece_axes:
        dim = dims[axis]
        if dim is None:
            placements.append(Replicate())
            continue
        start, stop = plan.range_along(axis, whole.shape[dim], mesh[axis].get_local_rank())
        own = own.narrow(dim, start, stop - start)
        placements.append(Shard(dim))
    # A copy, so that the whole is freed.
    local = torch.empty_like(own, memory_format=torch.contiguous_format).copy_(own)
    stride = torch.empty(whole.shape, device="meta").stride()
    return DTensor.from_local(local, mesh, placements, run_check=False, shape=whole.shape, stride=stride)


def _replace(modules: Iterable[nn.Module], new: Mapping[int, nn.Parameter]) -> None:
    for module in modules:
        for name, param in module._parameters.items():
            if param is not None and id(param) in new:
                module._parameters[name] = new[id(param)]
