"""What a chain of optimizers keeps per parameter, by name: read for saving, allocated and filled for resuming.

Names are `optim.<parameter>.<key>` for the base's state and `<wrapper>.<parameter>.<key>` for a wrapper's own.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from distsam.engine.weights import parameters_of
from distsam.optim import Wrapper

BASE = "optim"
# Prefix -> parameter -> key -> value; torch and the wrappers type their parameters differently.
States = dict[str, Any]


def tensors_of(model: nn.Module, optimizer: Wrapper) -> dict[str, Tensor]:
    """Name -> tensor of every state in the chain, sharing memory."""
    parameters = parameters_of(model)
    return {
        f"{prefix}.{name}.{key}": value
        for prefix, states in _states(optimizer).items()
        for name, param in parameters.items()
        for key, value in states.get(param, {}).items()
        if isinstance(value, Tensor)
    }


@torch.no_grad()
def allocate_tensors(
    model: nn.Module, optimizer: Wrapper, shapes: Mapping[str, tuple[torch.Size, torch.dtype]]
) -> None:
    """Put zeros where a checkpoint of these shapes has a tensor of the chain's state.

    Our own and not torch's `set_optimizer_state_dict`, because that runs a step of the optimizer to make room.
    """
    parameters, states = parameters_of(model), _states(optimizer)
    for full_name, (shape, dtype) in shapes.items():
        prefix, _, rest = full_name.partition(".")
        name, _, key = rest.rpartition(".")
        if prefix in states and name in parameters:
            param = parameters[name]
            states[prefix].setdefault(param, {})[key] = _zeros(param, shape, dtype)


def plain_values(model: nn.Module, optimizer: Wrapper) -> dict[str, dict[str, Any]]:
    """Parameter name -> what the base keeps of it that is no tensor."""
    state = optimizer.base_optimizer.state
    found = {
        name: {key: value for key, value in state.get(param, {}).items() if is_plain(value)}
        for name, param in parameters_of(model).items()
    }
    return {name: values for name, values in found.items() if values}


def load_plain_values(model: nn.Module, optimizer: Wrapper, values: Mapping[str, Mapping[str, Any]]) -> None:
    """Restore what `plain_values` gave, as far as the parameters are there."""
    for name, param in parameters_of(model).items():
        if name in values:
            optimizer.base_optimizer.state[param].update(values[name])


def is_plain(value: object) -> bool:
    """True for what JSON gives back as it was."""
    return value is None or isinstance(value, bool | int | float | str)


def _states(optimizer: Wrapper) -> States:
    own: States = {wrapper.name: wrapper.own_state for wrapper in optimizer.chain()}
    return {**own, BASE: optimizer.base_optimizer.state}


def _zeros(param: nn.Parameter, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    if shape == param.shape:
        return torch.zeros_like(param, dtype=dtype, requires_grad=False)
    return torch.zeros(shape, dtype=dtype)  # Adam counts its steps in CPU scalars
