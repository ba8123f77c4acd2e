"""Which parameters FSDP2 gathers together: each network by itself, and the rest of the model at its root."""

from dataclasses import dataclass, field

from torch import nn

from distsam.errors import ArgumentError
from distsam.tensornet import as_network


@dataclass
class ShardGroup:
    """A module that FSDP2 wraps, and the parameters that it shards there, by name."""

    module: nn.Module
    params: dict[str, nn.Parameter] = field(default_factory=dict)


def shard_groups(model: nn.Module, whole: set[nn.Parameter]) -> list[ShardGroup]:
    """The networks of `model`, then the model itself, as far as there is anything of them to be sharded.

    A root that owns nothing is left out: FSDP2 would forbid calling a network before the root's forward.

    Args:
        model: a module with its full weights.
        whole: parameters that stay whole; any module may share them.

    Raises:
        InputError: a group that FSDP2 cannot serve, or that it would serve wrongly without a word.
    """
    networks = [ShardGroup(m) for m in model.modules() if as_network(m) is not None]
    root = ShardGroup(model)
    group_of = {id(m): group for group in networks for m in group.module.modules()}
    owner: dict[int, ShardGroup] = {}
    for path, module in model.named_modules():
        group = group_of.get(id(module), root)
        for name, param in module.named_parameters(path, recurse=False):
            if param in whole:
                continue
            if owner.setdefault(id(param), group) is not group:
                raise _refusal(name, "is shared by two networks, or by one and the rest, and would be untied")
            group.params[name] = param
    groups = [group for group in (*networks, root) if group.params]
    for group in groups:
        _check_group(group)
    return groups


def _check_group(group: ShardGroup) -> None:
    dtypes = {param.dtype for param in group.params.values()}
    for name, param in group.params.items():
        if len(dtypes) > 1:
            names = " and ".join(sorted(map(str, dtypes)))
            raise _refusal(name, f"is gathered together with others, and they are of {names}")
        if not param.is_contiguous():
            raise _refusal(name, "is not contiguous")
        if isinstance(group.module, nn.ModuleDict | nn.ModuleList):
            kind = type(group.module).__name__
            raise _refusal(name, f"belongs to no tensor network and a {kind} has no forward in which to gather it")


def _refusal(parameter: str, problem: str) -> ArgumentError:
    return ArgumentError("plan", f"fsdp: {parameter} {problem}; change that, or use replicate")
