"""The weights of a model as checkpoints hold them: what is trained, and buffers. Frozen parameters stay as built."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Name -> parameter that is not frozen, or buffer, as it is placed, sharing its memory."""
    # state_dict, not named_parameters: FSDP2 first puts gathered weights back into shards.
    state = model.state_dict(keep_vars=True)
    return {name: value.detach() for name, value in state.items() if not _is_frozen(value)}


@torch.no_grad()
def put_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Set what `model_tensors` gives to `tensors`, which are named and placed like them."""
    for name, target in model_tensors(model).items():
        target.copy_(tensors[name])


def parameters_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter."""
    # state_dict, not named_parameters: FSDP2 first puts gathered weights back into shards.
    state = model.state_dict(keep_vars=True)
    return {name: value for name, value in state.items() if isinstance(value, nn.Parameter)}


def parameters_among(model: nn.Module, tensors: Mapping[str, Tensor]) -> list[Tensor]:
    """Those of `tensors`, named as `model_tensors` names them, that are parameters; buffers may hold what they like."""
    return [tensors[name] for name in parameters_of(model) if name in tensors]


def _is_frozen(value: Tensor) -> bool:
    return isinstance(value, nn.Parameter) and not value.requires_grad
