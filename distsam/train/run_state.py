"""The tensors of a run by name: weights, optimizer state, best weights; read for saving, filled for resuming."""

import math

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

MODEL, OPTIM, BEST = "model.", "optim.", "best."


class BestWeights:
    """The weights with the best validation R2 so far, kept as a copy of each rank's own shards.

    Attributes:
        value, step: that R2 and where it was; None before the first evaluation with a finite one.
        num_stale: evaluations since then.
        tensors: parameter name -> copy, placed like the parameter.
    """

    def __init__(self) -> None:
        self.value: float | None = None
        self.step: int | None = None
        self.num_stale = 0
        self.tensors: dict[str, Tensor] = {}

    @torch.no_grad()
    def consider(self, model: nn.Module, step: int, value: float | None) -> None:
        """Keep a copy of the weights if `value`, the same on every rank, is the best so far."""
        if value is None or not self.is_beaten_by(value):
            self.num_stale += 1
            return
        self.value, self.step, self.num_stale = value, step, 0
        self.tensors = {name: tensor.clone() for name, tensor in model_tensors(model).items()}

    def is_beaten_by(self, value: float | None) -> bool:
        """True for a finite `value` above the best so far."""
        return value is not None and math.isfinite(value) and (self.value is None or value > self.value)


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Name -> parameter or buffer as it is placed, sharing its memory."""
    # state_dict, not named_parameters: FSDP2 first puts gathered weights back into shards.
    return {name: value.detach() for name, value in model.state_dict().items()}


@torch.no_grad()
def put_weights(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Set the weights to `tensors`, which are named and placed like them."""
    for name, target in model_tensors(model).items():
        target.copy_(tensors[name])


def run_tensors(model: nn.Module, optimizer: Optimizer, best: BestWeights) -> dict[str, Tensor]:
    """Everything of a run that a checkpoint holds as tensors."""
    tensors = {MODEL + name: tensor for name, tensor in model_tensors(model).items()}
    tensors |= {BEST + name: tensor for name, tensor in best.tensors.items()}
    for name, param in _parameters(model).items():
        for key, value in optimizer.state.get(param, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{OPTIM}{name}.{key}"] = value
    return tensors


def make_room(
    model: nn.Module, optimizer: Optimizer, best: BestWeights, shapes: dict[str, tuple[torch.Size, torch.dtype]]
) -> dict[str, Tensor]:
    """`run_tensors` of a run that has just been built, with room for what a checkpoint holds beside the weights.

    Our own and not torch's `set_optimizer_state_dict`, because that runs a step of the optimizer to make room.

    Args:
        shapes: name -> (full shape, dtype) of the checkpoint's tensors.
    """
    parameters = _parameters(model)
    for full_name, (shape, dtype) in shapes.items():
        if full_name.startswith(OPTIM):
            name, _, key = full_name.removeprefix(OPTIM).rpartition(".")
            if name in parameters:
                optimizer.state[parameters[name]][key] = _room(parameters[name], shape, dtype)
        elif full_name.startswith(BEST):
            name = full_name.removeprefix(BEST)
            if name in parameters:
                best.tensors[name] = _room(parameters[name].detach(), shape, dtype)
    return run_tensors(model, optimizer, best)


def _room(like: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    if shape == like.shape:
        return torch.zeros_like(like, dtype=dtype, requires_grad=False)
    return torch.zeros(shape, dtype=dtype)  # Adam counts its steps in CPU scalars


def _parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    state = model.state_dict(keep_vars=True)
    return {name: value for name, value in state.items() if isinstance(value, nn.Parameter)}
