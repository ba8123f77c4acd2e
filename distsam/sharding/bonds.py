"""Cut the cores of a model along bonds, and have its networks contracted in pieces."""

from collections.abc import Iterable, Mapping
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from distsam.errors import ArgumentError
from distsam.sharding.cut_cores import CutCores
from distsam.sharding.moves import AxisRanks
from distsam.sharding.plan import NetworkWeights, ShardPlan
from distsam.tensornet import Contractor, NetworkModule, as_network


class CuttableNetwork(NetworkModule, Protocol):
    """A NetworkModule that leaves its contractions to whom it is told to; `TensorNetwork` is one."""

    def contract_with(self, contractor: Contractor) -> None: ...


def cuttable_networks(model: nn.Module) -> dict[str, CuttableNetwork]:
    """Path of the module -> each network that can be contracted in pieces."""
    found = {}
    for path, module in model.named_modules():
        network = as_network(module)
        if network is not None and hasattr(network, "contract_with"):
            found[path] = cast(CuttableNetwork, network)
    return found


def network_weights(model: nn.Module) -> list[NetworkWeights]:
    """What a plan may know of these networks; those with a core that is frozen, or shared, are left out."""
    names = {id(p): name for name, p in model.named_parameters()}
    networks = list(cuttable_networks(model).values())
    uses = [id(core) for network in networks for core in network.cores]
    return [
        NetworkWeights(network.spec, tuple(names[id(core)] for core in network.cores))
        for network in networks
        if all(core.requires_grad and uses.count(id(core)) == 1 for core in network.cores)
    ]


def cut_bonds(model: nn.Module, mesh: DeviceMesh, plan: ShardPlan) -> None:
    """Replace each core that `plan` cuts along the axis of `mesh` by a DTensor of this rank's piece.

    Cores on the meta device get pieces there.

    Args:
        model: with whole parameters.
        mesh: of one axis, which is among `plan.contracted_axes`.
        plan: made for the model.

    Raises:
        ArgumentError: the plan cuts a parameter that is no core of a network which can be contracted in pieces, or cuts
            it along a mode.
    """
    [axis] = mesh.mesh_dim_names or ()
    place = [name for name, _ in plan.axes].index(axis)
    names = {id(p): name for name, p in model.named_parameters()}
    cuts = {name: dims[place] for name, dims in plan.placements if dims[place] is not None}
    ranks = AxisRanks(mesh.get_group(), mesh.size(), mesh.get_local_rank())
    bonds_of = _bonds_of(model, names, cuts)
    pieces = {
        id(p): nn.Parameter(_piece(p.detach(), cut, mesh, ranks), p.requires_grad)
        for p in model.parameters()
        if (cut := cuts.get(names[id(p)])) is not None
    }
    _replace(model.modules(), pieces)
    for network, bonds in bonds_of:
        network.contract_with(CutCores(network.spec, bonds, ranks))


def _bonds_of(
    model: nn.Module, names: Mapping[int, str], cuts: Mapping[str, int | None]
) -> list[tuple[CuttableNetwork, list[str | None]]]:
    """Every network with a cut core, and for each of its cores the bond that is cut, or None."""
    found, known = [], set[str]()
    for network in cuttable_networks(model).values():
        dims = [cuts.get(names[id(core)]) for core in network.cores]
        bonds = [None if dim is None else core[dim] for core, dim in zip(network.spec.cores, dims, strict=True)]
        known.update(names[id(core)] for core in network.cores)
        if modes := [bond for bond in bonds if bond in network.spec.modes]:
            raise ArgumentError(
                "plan", f"cuts a core along the mode {modes[0]} on an axis of bonds; cut it along a bond"
            )
        if any(bond is not None for bond in bonds):
            found.append((network, bonds))
    if others := [name for name in cuts if name not in known]:
        problem = (
            f"cuts {others[0]} on an axis whose ranks see the same data; there only cores of a TensorNetwork can be"
        )
        raise ArgumentError("plan", problem)
    return found


def _piece(whole: Tensor, dim: int, mesh: DeviceMesh, ranks: AxisRanks) -> Tensor:
    start, stop = ranks.bounds(whole.shape[dim])
    own = whole.narrow(dim, start, stop - start)
    # A copy, so that the whole is freed.
    local = torch.empty_like(own, memory_format=torch.contiguous_format).copy_(own)
    return DTensor.from_local(
        local, mesh, [Shard(dim)], run_check=False, shape=whole.shape, stride=whole.contiguous().stride()
    )


def _replace(modules: Iterable[nn.Module], new: Mapping[int, nn.Parameter]) -> None:
    for module in modules:
        for name, param in module._parameters.items():
            if param is not None and id(param) in new:
                module._parameters[name] = new[id(param)]
