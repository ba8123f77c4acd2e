"""The weights of a model as checkpoints hold them: what is trained, all cores, and buffers."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from distsam.tensornet import core_networks


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Name -> parameter or buffer, but for `frozen_parameters`, as it is placed, sharing its memory."""
    # state_dict, not named_parameters: FSDP2 first puts gathered weights back into shards.
    state = model.state_dict(keep_vars=True)
    frozen = _frozen_among(state, model)
    return {name: value.detach() for name, value in state.items() if name not in frozen}


def frozen_parameters(model: nn.Module) -> set[str]:
    """Names of the parameters that whoever builds the model gives again, the same: those that are not trained.

    Cores are none of them, trained or not: they may come of a decomposition, which differs in its last bits from one
    machine to another.
    """
    return _frozen_among(model.state_dict(keep_vars=True), model)


def _frozen_among(state: Mapping[str, Tensor], model: nn.Module) -> set[str]:
    # A state dict with its variables holds the model's own parameters, also under FSDP2 and DeepSpeed.
    frozen = {name: p for name, p in state.items() if isinstance(p, nn.Parameter) and not p.requires_grad}
    cores = {id(core) for network in core_networks(model) for core in network.cores} if frozen else set()
    return {name for name, p in frozen.items() if id(p) not in cores}


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
