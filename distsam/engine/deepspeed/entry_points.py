"""Methods of a module that compute with its weights, at stage 3, where DeepSpeed gathers them for `forward` alone."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from torch import nn

from distsam.engine.deepspeed import library
from distsam.tensornet import as_network


def gather_in_entry_points(model: nn.Module) -> None:
    """Let the entry points of every network in `model` (`at`, `dense`) gather its cores, forward and backward."""
    for module in model.modules():
        network = as_network(module)
        for name in () if network is None else network.entry_points:
            setattr(module, name, _as_forward(module, getattr(module, name)))


def _as_forward(module: nn.Module, method: Callable[..., Any]) -> Callable[..., Any]:
    """`method`, run in the place of `module.forward` and with its hooks, unless those have run already."""
    depth = [0]
    module.register_forward_pre_hook(lambda *_: _count(depth, 1))
    module.register_forward_hook(lambda *_: _count(depth, -1), always_call=True)

    @wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        if depth[0]:
            return method(*args, **kwargs)
        own = module.__dict__.get("forward")
        module.forward = method
        try:
            with library.gathering(module):
                return module(*args, **kwargs)
        finally:
            del module.forward
            if own is not None:
                module.forward = own

    return call


def _count(depth: list[int], by: int) -> None:
    # A forward hook's result would take the place of the module's.
    depth[0] += by
