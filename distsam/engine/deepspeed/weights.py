"""Weights that ZeRO stage 3 has cut, in the form of native checkpoints, and back."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from distsam.engine.deepspeed import library
from distsam.engine.deepspeed.assembly import mesh_of_all, put_together, spread, take_part
from distsam.engine.weights import model_tensors, parameters_of


class CutWeights:
    """The weights of a model at stage 3.

    Args:
        model: its parameters are cut.
        zero: DeepSpeed's optimizer.

    Collectives: those of a new process group; every rank builds one.
    """

    def __init__(self, model: nn.Module, zero: Any) -> None:
        self._model, self._zero = model, zero
        self._mesh = mesh_of_all(next(model.parameters()).device)

    def tensors(self) -> dict[str, Tensor]:
        """Name -> copy of a parameter, cut along its first dim, or buffer. Collectives: an all_reduce a parameter."""
        found = model_tensors(self._model)
        for name, param in parameters_of(self._model).items():
            if name not in found:
                continue  # frozen
            start, _ = library.bounds(param)
            whole = put_together(library.cut_weights(param), start, library.shape_of(param))
            found[name] = spread(whole, self._mesh)
        return found

    @torch.no_grad()
    def put(self, tensors: Mapping[str, Tensor]) -> None:
        """Set parameters and buffers. Collectives: an all_gather a parameter, and one of the small parameters."""
        cut = parameters_of(self._model)
        for name, target in model_tensors(self._model).items():
            if name in cut:
                library.cut_weights(cut[name]).copy_(take_part(tensors[name], *library.bounds(cut[name])))
            else:
                target.copy_(tensors[name])
        library.gather_again(self._zero)
