"""A world of any number of ranks in one process, which sends nothing: to see what a rank would do there."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.debug import _clear_sharding_prop_cache

from distsam.sharding.world import World, close_world

# What a mesh computes with tensors of ranks, whose values it needs; names of torch 2.11 to 2.13, as far as there are.
_OF_MESHES = (
    "__init__",
    "__getitem__",
    "__hash__",
    "__eq__",
    "_concatenate",
    "_flatten",
    "_unflatten",
    "get_coordinate",
    "get_local_rank",
    "_create_sub_mesh",
    "_create_flatten_mesh",
)


@contextmanager
def fake_world(rank: int, world_size: int) -> Iterator[World]:
    """This process as one of `world_size` ranks of torch's fake process group, on CPU; none is left afterwards.

    Inside, a device mesh and `Module.to` work under a FakeTensorMode too.

    Collectives: all that run inside return at once, with what this rank has put in.

    Raises:
        RuntimeError: this process is one of a real world.
    """
    if dist.is_initialized():
        raise RuntimeError("this process belongs to a process group: a fake world needs one of its own")
    with ExitStack() as stack:
        if world_size > 1:
            dist.init_process_group("fake", rank=rank, world_size=world_size)
            stack.callback(close_world)
        # What DTensor remembers of an operation holds shapes of pieces, but not of which rank: a process has only one.
        _clear_sharding_prop_cache()
        stack.callback(_clear_sharding_prop_cache)
        for name in _OF_MESHES:
            if name in DeviceMesh.__dict__:
                stack.enter_context(replaced(DeviceMesh, name, _outside_fake_mode(DeviceMesh.__dict__[name])))
        stack.enter_context(replaced(nn.Module, "to", _converted))
        yield World(rank, world_size, 0, torch.device("cpu"))


@contextmanager
def replaced(owner: type, name: str, value: Any) -> Iterator[None]:
    """`owner` has `value` for its attribute `name` inside; afterwards what it had."""
    is_own, before = name in owner.__dict__, owner.__dict__.get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if is_own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


def _converted(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
    """`module` in another dtype, by new parameters: torch swaps the old ones with them, which fake tensors refuse."""
    _, dtype, _, _ = torch._C._nn._parse_to(*args, **kwargs)
    made: dict[int, Any] = {}  # what stands in two places stays one

    def convert(tensor: Any) -> Any:
        if tensor is None or dtype is None or tensor.dtype == dtype or not tensor.is_floating_point():
            return tensor
        if id(tensor) not in made:
            new = tensor.detach().to(dtype)
            made[id(tensor)] = nn.Parameter(new, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new
        return made[id(tensor)]

    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            tensors.update({name: convert(tensor) for name, tensor in tensors.items()})
    return module


def _outside_fake_mode(method: Any) -> Any:
    if isinstance(method, staticmethod | classmethod):
        return type(method)(_outside(method.__func__))
    return _outside(method)


def _outside(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with unset_fake_temporarily():
            return function(*args, **kwargs)

    return call
