"""Put a model's weights where a plan says: FSDP2 for what is sharded, averaged gradients for what is whole."""

from dataclasses import replace

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import Shard

from distsam.errors import ArgumentError
from distsam.sharding.collectives import broadcast_from_first_, new_group, world_size
from distsam.sharding.gathered import remember
from distsam.sharding.groups import shard_groups
from distsam.sharding.layout import ranks_along, remember_loss_weight
from distsam.sharding.plan import Axes, Plan, ShardPlan
from distsam.sharding.plans import plan_named
from distsam.sharding.replicate import GradientAverager
from distsam.tensornet import as_network


def shard(model: nn.Module, mesh: DeviceMesh | None, plan: str | ShardPlan = "fsdp") -> nn.Module:
    """Place `model` on `mesh` by `plan`, in place; every rank then starts from rank 0's weights.

    From here on a backward leaves gradients that are averaged over the ranks along the data axes. Build the optimizer
    afterwards: FSDP2 replaces the parameters by DTensors. Make copies before: FSDP2 refuses a deepcopy, and one of a
    replicated model averages nothing.

    Args:
        model: a module, with its full weights, on the mesh's device.
        mesh: over the whole world, 1-D or 2-D (replicate x shard, axes named), of any axes with a ShardPlan; in a world
            of one process None, or a mesh of one rank, leaves the model as it is.
        plan: "replicate" or "fsdp", for which every axis is a data axis, or a ShardPlan made for this mesh and model.
            By name, parameters that are frozen (requires_grad=False) stay whole on every rank.

    Returns:
        The same module.

    Which gradients every rank must have: under "fsdp" each rank's loss must run backward through every network, and
    through the rest where that is sharded, because FSDP2 reduces a group's gradients only where there are some. A
    whole parameter may be missing from some ranks' losses, and so may all of them: that rank takes part when an
    optimizer of distsam measures the pass, which then must consist of one backward, the others being inside
    `accumulating`. With sharded parameters outside the networks, run the model's forward before a network's own
    entry points (`at`, `dense`).

    Collectives: one broadcast per parameter and buffer, once, and a new process group where "fsdp" leaves parameters
        whole or an axis is no data axis. Afterwards per pass: "fsdp" one all-gather per call of a network forward, one
        all-gather and one reduce-scatter backward (and one all-reduce with two data axes); whole parameters one
        all-reduce per 25 MiB backward. Every rank calls it.

    Raises:
        ArgumentError: a plan that the mesh or the model cannot serve, or one made for another mesh or model; under
            "fsdp" a parameter to be sharded that two networks share, or of another dtype than others of its network.
    """
    family = plan_named(plan) if isinstance(plan, str) else None
    num_ranks = 1 if mesh is None else mesh.size()
    if num_ranks != world_size():
        raise ArgumentError("mesh", f"{num_ranks} ranks in a world of {world_size()}: it must cover every rank")
    if mesh is None or num_ranks == 1:
        return model
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    found = place_model(family, model, _axes_of(mesh)) if family is not None else plan
    assert isinstance(found, ShardPlan)
    _check_made_for(found, mesh, shapes)
    broadcast_from_first_([*(p.detach() for p in model.parameters()), *model.buffers()])
    _apply(model, mesh, found)
    remember_loss_weight(model.parameters(), mesh, found.axes, found.data_axes)
    return model


def place_model(plan: Plan, model: nn.Module, axes: Axes) -> ShardPlan:
    """Where `plan` puts the parameters of `model`; those that are frozen stay whole on every rank.

    Raises:
        ArgumentError: the axes can serve none of the parameters.
    """
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    trained = {name: shapes[name] for name, p in model.named_parameters() if p.requires_grad}
    found = plan.place(trained, axes)
    placements = {name: (None,) * len(axes) for name in shapes} | dict(found.placements)
    return replace(found, shapes=tuple(shapes.items()), placements=tuple(placements.items()))


def _axes_of(mesh: DeviceMesh) -> Axes:
    """The axes of a mesh for a plan that takes all of them for data axes."""
    if mesh.ndim > 2 or (mesh.ndim == 2 and mesh.mesh_dim_names is None):
        problem = f"of shape {tuple(mesh.shape)}: use one axis, two named axes (replicate, shard), or a ShardPlan"
        raise ArgumentError("mesh", problem)
    return tuple(zip(mesh.mesh_dim_names or ("shard",), mesh.shape, strict=True))


def _check_made_for(plan: ShardPlan, mesh: DeviceMesh, shapes: dict[str, tuple[int, ...]]) -> None:
    if plan.mesh_shape != tuple(mesh.shape):
        raise ArgumentError("plan", f"made for a mesh of {plan.mesh_shape}: this one is {tuple(mesh.shape)}")
    names = tuple(name for name, _ in plan.axes)
    if mesh.ndim > 1 and mesh.mesh_dim_names != names:
        raise ArgumentError("plan", f"made for a mesh with the axes {names}: this one's are {mesh.mesh_dim_names}")
    for name in {**dict(plan.shapes), **shapes}:
        planned, here = dict(plan.shapes).get(name), shapes.get(name)
        if planned != here:
            raise ArgumentError("plan", f"made for {name} of shape {planned}: the model has {here}")
    data = [dim for dim, (name, _) in enumerate(plan.axes) if name in plan.data_axes]
    for name, dims in plan.placements:
        cutting = [axis for axis, dim in enumerate(dims) if dim is not None]
        if cutting and (cutting != data[-1:] or len(data) > 2):
            problem = f"{plan.name} cuts {name} by {dims} on {plan.axes}: FSDP2 cuts by the last of up to 2 data axes"
            raise ArgumentError("plan", problem)


def _apply(model: nn.Module, mesh: DeviceMesh, plan: ShardPlan) -> None:
    dims = {id(p): next((d for d in plan.dims_of(n) if d is not None), None) for n, p in model.named_parameters()}
    whole = [p for p in model.parameters() if dims[id(p)] is None]
    is_sharded = len(whole) < len(dims)
    names = [name for name, _ in plan.axes]
    has_copies = set(plan.data_axes) < set(names)
    if is_sharded:
        data_mesh = mesh[tuple(name for name in names if name in plan.data_axes)] if has_copies else mesh
        _shard_modules(model, data_mesh, dims, set(whole))
        remember(model)
    if whole and has_copies:
        GradientAverager(whole, new_group(ranks_along(mesh, names, plan.data_axes)))
    elif whole:
        # FSDP2 reduces in the same backward: a group of our own keeps the two orders apart.
        GradientAverager(whole, new_group() if is_sharded else None)


def _shard_modules(model: nn.Module, mesh: DeviceMesh, dims: dict[int, int | None], whole: set[nn.Parameter]) -> None:
    def placement(param: nn.Parameter) -> Shard:
        dim = dims[id(param)]
        assert dim is not None
        return Shard(dim)

    for group in shard_groups(model, whole):
        # Always reshard after forward: an evaluation that leaves whole weights behind would make the next
        # forward skip its all-gather, and with it a perturbation of the shards.
        module = group.module
        fully_shard(module, mesh=mesh, reshard_after_forward=True, shard_placement_fn=placement, ignored_params=whole)
        network = as_network(module)
        for method in () if network is None else network.entry_points:
            register_fsdp_forward_method(module, method)
