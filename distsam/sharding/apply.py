"""Put a model's weights where a plan says: FSDP2 for what is sharded, averaged gradients for what is whole."""

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import Shard

from distsam.errors import InputError
from distsam.sharding.collectives import broadcast_from_first_, new_world_group, world_size
from distsam.sharding.gathered import remember
from distsam.sharding.groups import shard_groups
from distsam.sharding.plan import ShardPlan, plan_shards
from distsam.sharding.replicate import GradientAverager
from distsam.sharding.world import check_plan_name
from distsam.tensornet import TensorNetwork


def shard(model: nn.Module, mesh: DeviceMesh | None, plan: str | ShardPlan = "fsdp") -> nn.Module:
    """Place `model` on `mesh` by `plan`, in place; every rank then starts from rank 0's weights.

    From here on a backward leaves gradients that are averaged over all ranks of the mesh. Build the optimizer
    afterwards: FSDP2 replaces the parameters by DTensors. Make copies before: FSDP2 refuses a deepcopy, and one of a
    replicated model averages nothing.

    Args:
        model: a module, with its full weights, on the mesh's device.
        mesh: 1-D or 2-D (replicate x shard, axes named) over the whole world; in a world of one process None, or a mesh
            of one rank, leaves the model as it is.
        plan: "replicate", "fsdp", or a ShardPlan made for this mesh and model.

    Returns:
        The same module.

    Which gradients every rank must have: under "fsdp" each rank's loss must run backward through every network, and
    through the rest where that is sharded, because FSDP2 reduces a group's gradients only where there are some. A
    whole parameter may be missing from some ranks' losses, and so may all of them: that rank takes part when an
    optimizer of distsam measures the pass, which then must consist of one backward. With sharded parameters outside
    the networks, run the model's forward before a network's own `at` or `dense`.

    Collectives: one broadcast per parameter and buffer, once, and a new process group where "fsdp" leaves parameters
        whole. Afterwards per pass: "fsdp" one all-gather per
        call of a network forward, one all-gather and one reduce-scatter backward (and one all-reduce on a 2-D mesh);
        whole parameters one all-reduce per 25 MiB backward. Every rank calls it.

    Raises:
        InputError: a plan that the mesh or the model cannot serve, or one made for another mesh or model; under "fsdp"
            a parameter to be sharded that two networks share, or of another dtype than others of its network.
    """
    if isinstance(plan, str):
        check_plan_name(plan)
    num_ranks = 1 if mesh is None else mesh.size()
    if num_ranks != world_size():
        raise InputError(f"mesh of {num_ranks} ranks in a world of {world_size()}: it must cover every rank")
    if mesh is None or num_ranks == 1:
        return model
    if mesh.ndim > 2 or (mesh.ndim == 2 and mesh.mesh_dim_names is None):
        raise InputError(f"mesh of shape {tuple(mesh.shape)}: use one axis, or two named axes (replicate, shard)")
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    if isinstance(plan, str):
        plan = plan_shards(shapes, plan, tuple(mesh.shape))
    if plan.mesh_shape != tuple(mesh.shape):
        raise InputError(f"sharding plan made for a mesh of {plan.mesh_shape}: this one is {tuple(mesh.shape)}")
    for name in {**dict(plan.shapes), **shapes}:
        planned, found = dict(plan.shapes).get(name), shapes.get(name)
        if planned != found:
            raise InputError(f"sharding plan made for {name} of shape {planned}: the model has {found}")
    broadcast_from_first_([*(p.detach() for p in model.parameters()), *model.buffers()])
    return _apply(model, mesh, plan)


def _apply(model: nn.Module, mesh: DeviceMesh, plan: ShardPlan) -> nn.Module:
    dims = {id(p): plan.dim_of(name) for name, p in model.named_parameters()}
    whole = [p for p in model.parameters() if dims[id(p)] is None]
    is_sharded = len(whole) < len(dims)
    if is_sharded:
        _shard_modules(model, mesh, dims, set(whole))
        remember(model)
    if whole:
        # FSDP2 reduces in the same backward: a group of our own keeps the two orders apart.
        GradientAverager(whole, new_world_group() if is_sharded else None)
    return model


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
        if isinstance(module, TensorNetwork):
            for method in ("at", "dense"):
                register_fsdp_forward_method(module, method)
