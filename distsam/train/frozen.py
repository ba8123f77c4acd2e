"""Weights that are not trained: no checkpoint holds them, but their digest is kept, by which a resume knows them."""

import hashlib

import torch
from torch import nn

from distsam.engine import frozen_parameters

FROZEN = "frozen_sha256"


def frozen_identity(model: nn.Module) -> dict[str, str]:
    """The digest of `frozen_parameters` as FROZEN; nothing where there are none.

    Args:
        model: whole, before it is sharded.
    """
    frozen = frozen_parameters(model)
    if not frozen:
        return {}
    digest = hashlib.sha256()
    for name in sorted(frozen):
        weight = model.get_parameter(name).detach()
        digest.update(repr((name, tuple(weight.shape), weight.dtype)).encode())
        # As bytes, because numpy has no bfloat16.
        digest.update(weight.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return {FROZEN: digest.hexdigest()}
