"""Several backwards for one reduction: gradients stay local until the last of them."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.distributed.fsdp import FSDPModule

from distsam.sharding.replicate import averagers_of


@contextmanager
def accumulating(model: nn.Module) -> Iterator[None]:
    """Backwards inside leave this rank's own gradients; the first one afterwards reduces the sum, once.

    That last backward must reach every network, and every sharded parameter, that those inside reached, on every rank.

    Args:
        model: placed by `shard`; any other model is left as it is.

    Collectives: none of its own; inside, backward under "fsdp" still gathers weights, but reduces nothing.
    """
    averagers = averagers_of(model.parameters())
    wrapped = [m for m in model.modules() if isinstance(m, FSDPModule)]
    for averager in averagers:
        averager.is_paused = True
    for module in wrapped:
        module.set_requires_gradient_sync(False, recurse=False)
    try:
        yield
    finally:
        for averager in averagers:
            averager.is_paused = False
        for module in wrapped:
            module.set_requires_gradient_sync(True, recurse=False)
