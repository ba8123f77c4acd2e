"""Put a model's weights where a plan says: FSDP2 for what a data axis cuts, pieces of cores for what bonds cut,
averaged gradients for what the data ranks hold alike."""

from dataclasses import replace
from math import prod

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import Shard

from distsam.errors import ArgumentError
from distsam.sharding.buckets import EXACT, Reduction
from distsam.sharding.collectives import broadcast_from_first_, new_group, world_size
from distsam.sharding.gathered import remember
from distsam.sharding.groups import shard_groups
from distsam.sharding.layout import coordinate_on, ranks_along, remember_loss_weight
from distsam.sharding.pieces import cut_cores, network_weights
from distsam.sharding.plan import Axes, Plan, ShardPlan
from distsam.sharding.plans import plan_named
from distsam.sharding.replicate import GradientAverager
from distsam.sharding.start import deferred_networks, draw_pieces, make_room
from distsam.tensornet import as_network


def shard(
    model: nn.Module,
    mesh: DeviceMesh | None,
    plan: str | ShardPlan = "fsdp",
    *,
    draws: bool = True,
    reduction: Reduction = EXACT,
) -> nn.Module:
    """Place `model` on `mesh` by `plan`, in place; every rank then starts from rank 0's weights.

    Networks that were built under `deferred_draws` get their numbers here: each rank draws its own pieces alone, the
    same bits as in one process, so that no rank ever holds such a network whole.

    From here on a backward leaves gradients that are averaged over the ranks along the data axes. Build the optimizer
    afterwards: FSDP2 replaces the parameters by DTensors. Make copies before: FSDP2 refuses a deepcopy, and one of a
    replicated model averages nothing.

    Args:
        model: a module, with its full weights, on the mesh's device.
        mesh: over the whole world, 1-D or 2-D (replicate x shard, axes named), of any axes with a ShardPlan; in a world
            of one process None, or a mesh of one rank, leaves the model as it is.
        plan: "replicate" or "fsdp", for which every axis is a data axis, "bond" for a mesh of one axis whose ranks see
            the same data, or a ShardPlan made for this mesh and model. By name, parameters that are frozen
            (requires_grad=False) stay whole on every rank.
        draws: False leaves zeros in deferred networks, for whoever loads a checkpoint next.
        reduction: the dtype that gradients travel in, and the size of their messages.

    Returns:
        The same module.

    Which gradients every rank must have: under "fsdp" each rank's loss must run backward through every network, and
    through the rest where that is sharded, because FSDP2 reduces a group's gradients only where there are some. A
    whole parameter may be missing from some ranks' losses, and so may all of them: that rank takes part when an
    optimizer of distsam measures the pass, which then must consist of one backward, the others being inside
    `accumulating`. With sharded parameters outside the networks, run the model's forward before a network's own
    entry points (`at`, `dense`).

    Collectives: one broadcast per parameter and buffer that is there, one all_reduce of a number for each core that is
        still to be drawn, once, and a new process group where "fsdp" leaves parameters
        whole or an axis is no data axis. Afterwards per pass: "fsdp" one all-gather per call of a network forward, one
        all-gather and one reduce-scatter backward (and one all-reduce with two data axes); whole parameters one
        all-reduce per bucket of `reduction` backward; cores cut along bonds those of `CutCores`. Every rank calls it.

    Raises:
        ArgumentError: a plan that the mesh or the model cannot serve, or one made for another mesh or model; under
            "fsdp" a parameter to be sharded that two networks share, or of another dtype than others of its network.
    """
    family = plan_named(plan) if isinstance(plan, str) else None
    num_ranks = 1 if mesh is None else mesh.size()
    if num_ranks != world_size():
        raise ArgumentError("mesh", f"{num_ranks} ranks in a world of {world_size()}: it must cover every rank")
    deferred = deferred_networks(model)
    if mesh is None or num_ranks == 1:
        make_room(model)
        draw_pieces(deferred if draws else [])
        return model
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    found = place_model(family, model, _axes_of(mesh, family)) if family is not None else plan
    assert isinstance(found, ShardPlan)
    _check_made_for(found, mesh, shapes)
    broadcast_from_first_([*(p.detach() for p in model.parameters() if not p.is_meta), *model.buffers()])
    _apply(model, mesh, found, reduction)
    names = {id(p): name for name, p in model.named_parameters()}
    draw_pieces(deferred if draws else [], found, names, coordinate_on(mesh, found.axes))
    remember_loss_weight(model.parameters(), mesh, found.axes, found.data_axes)
    return model


def place_model(plan: Plan, model: nn.Module, axes: Axes) -> ShardPlan:
    """Where `plan` puts the parameters of `model`; those that are frozen stay whole on every rank.

    Raises:
        ArgumentError: the axes can serve none of the parameters, or the plan is made for another model.
    """
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    trained = {name: shapes[name] for name, p in model.named_parameters() if p.requires_grad}
    found = plan.place(trained, axes, network_weights(model))
    for name, shape in found.shapes:
        if shapes.get(name) != shape:
            here = f"has it of shape {shapes[name]}" if name in shapes else "has no such parameter"
            raise ArgumentError("plan", f"{found.name}: made for {name} of shape {shape}: the model {here}")
        if name not in trained and not found.is_whole(name):
            raise ArgumentError("plan", f"{found.name}: cuts {name}, which is frozen; frozen weights stay whole")
    placements = {name: (None,) * len(axes) for name in shapes} | dict(found.placements)
    return replace(found, shapes=tuple(shapes.items()), placements=tuple(placements.items()))


def _axes_of(mesh: DeviceMesh, plan: Plan) -> Axes:
    """The axes of a mesh for a plan that is known by its name alone."""
    wanted = plan.axes(mesh.size())
    if any(name not in plan.data_axes for name, _ in wanted):
        if len(wanted) != mesh.ndim or tuple(name for name, _ in wanted) != mesh.mesh_dim_names:
            problem = f"of shape {tuple(mesh.shape)}: use one with the axes {', '.join(name for name, _ in wanted)}"
            raise ArgumentError("mesh", f"{problem}, as make_layout makes it, or a ShardPlan")
    elif mesh.ndim > 2 or (mesh.ndim == 2 and mesh.mesh_dim_names is None):
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
    if len(plan.contracted_axes) > 1:
        raise ArgumentError(
            "plan", f"{plan.name} cuts along {', '.join(plan.contracted_axes)}: only one axis of bonds can"
        )
    for name, dims in plan.placements:
        _check_gathered(plan, name, dims)


def _check_gathered(plan: ShardPlan, name: str, dims: tuple[int | None, ...]) -> None:
    """What FSDP2 can gather: what the last of up to two axes cuts, evenly or along dim 0."""
    axes = [n for n, (axis, _) in enumerate(plan.axes) if axis in plan.gathered_axes]
    cutting = [n for n in axes if dims[n] is not None]
    if not cutting:
        return
    if cutting != axes[-1:] or len(axes) > 2 or plan.routed is not None:
        problem = f"{plan.name} cuts {name} by {dims} on {plan.axes}: FSDP2 cuts by the last of up to 2 data axes"
        raise ArgumentError("plan", problem)
    shape, dim, size = dict(plan.shapes)[name], dims[cutting[0]], plan.axes[cutting[0]][1]
    if dim and shape[dim] % size:
        problem = (
            f"{plan.name} cuts dim {dim} of {name} of shape {shape} into {size} pieces: FSDP2 cuts dim 0 alone unevenly"
        )
        raise ArgumentError("plan", problem)


def _apply(model: nn.Module, mesh: DeviceMesh, plan: ShardPlan, reduction: Reduction) -> None:
    gathered = {name: _gathered_dim(plan, dims) for name, dims in plan.placements}
    routed = set[str]() if plan.routed is None else set(plan.parameters_cut_by(plan.routed[0]))
    if plan.piece_axes:
        cut_cores(model, mesh, plan)
    params = dict(model.named_parameters())
    dims = {id(p): gathered[name] for name, p in params.items()}
    is_gathered = any(dim is not None for dim in gathered.values())
    if is_gathered:
        is_all = set(plan.gathered_axes) == {name for name, _ in plan.axes}
        data_mesh = mesh if is_all else mesh[plan.gathered_axes]
        whole = {p for p in params.values() if dims[id(p)] is None}
        _shard_modules(model, data_mesh, dims, whole, MixedPrecisionPolicy(reduce_dtype=reduction.dtype))
    make_room(model)
    params = dict(model.named_parameters())
    if is_gathered:
        remember(model)
    # The gradients of these differ between data ranks, and are averaged; those of the others FSDP2 reduces.
    alike = [p for name, p in params.items() if gathered[name] is None and name not in routed]
    _average(alike, mesh, plan, plan.data_axes, reduction, beside_fsdp=is_gathered)
    # Each rank's rows have their whole gradient; copies of them differ in the rest of the data axes.
    _average([params[name] for name in routed], mesh, plan, plan.gathered_axes, reduction)


def _gathered_dim(plan: ShardPlan, dims: tuple[int | None, ...]) -> int | None:
    """The dim that FSDP2 cuts; None where it leaves the parameter alone."""
    for (axis, _), dim in zip(plan.axes, dims, strict=True):
        if axis in plan.gathered_axes and dim is not None:
            return dim
    return None


def _average(
    params: list[nn.Parameter],
    mesh: DeviceMesh,
    plan: ShardPlan,
    axes: tuple[str, ...],
    reduction: Reduction,
    beside_fsdp: bool = False,
) -> None:
    """Have gradients averaged over the ranks along `axes`, if there are several."""
    names = [name for name, _ in plan.axes]
    if not params or prod(size for name, size in plan.axes if name in axes) == 1:
        return
    if set(axes) < set(names):
        GradientAverager(params, new_group(ranks_along(mesh, names, axes)), reduction)
    else:
        # FSDP2 reduces in the same backward: a group of our own keeps the two orders apart.
        GradientAverager(params, new_group() if beside_fsdp else None, reduction)


def _shard_modules(
    model: nn.Module,
    mesh: DeviceMesh,
    dims: dict[int, int | None],
    whole: set[nn.Parameter],
    precision: MixedPrecisionPolicy,
) -> None:
    def placement(param: nn.Parameter) -> Shard:
        dim = dims[id(param)]
        assert dim is not None
        return Shard(dim)

    for group in shard_groups(model, whole):
        # Always reshard after forward: an evaluation that leaves whole weights behind would make the next
        # forward skip its all-gather, and with it a perturbation of the shards.
        module = group.module
        fully_shard(
            module,
            mesh=mesh,
            reshard_after_forward=True,
            shard_placement_fn=placement,
            mp_policy=precision,
            ignored_params=whole,
        )
        network = as_network(module)
        for method in () if network is None else network.entry_points:
            register_fsdp_forward_method(module, method)
