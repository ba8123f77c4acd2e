"""Weights that are not trained: no checkpoint holds them, but their digest is kept, by which a resume knows them."""

import hashlib

import torch
from torch import Tensor, nn

FROZEN = "frozen_sha256"


def frozen_weights(model: nn.Module) -> dict[str, Tensor]:
    """Name -> parameter that is not trained."""
    return {name: param.detach() for name, param in model.named_parameters() if not param.requires_grad}


def frozen_identity(model: nn.Module) -> dict[str, str]:
    """The digest of all frozen weights as FROZEN; nothing where none is frozen.

    Args:
        model: whole, before it is sharded.
    """
    frozen = frozen_weights(model)
    if not frozen:
        return {}
    digest = hashlib.sha256()
    for name, weight in frozen.items():
        digest.update(repr((name, tuple(weight.shape), weight.dtype)).encode())
        # As bytes, because numpy has no bfloat16.
        digest.update(weight.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return {FROZEN: digest.hexdigest()}
