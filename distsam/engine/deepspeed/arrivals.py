"""Whether the backwards of all ranks came to the same parameters in the same order, as DeepSpeed takes for granted."""

import zlib
from array import array
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from distsam.sharding.collectives import all_reduce_sum_, is_distributed, world_size


class Arrivals:
    """The order in which gradients of a pass arrived.

    DeepSpeed adds up what the ranks send in the order in which it arrives: a rank whose loss runs through another layer
    would have its gradient added to that of another weight, without a word.

    Args:
        params: those that are stepped, the same list on every rank.
    """

    def __init__(self, params: Sequence[nn.Parameter]) -> None:
        self._order = array("l")
        self._disagreement: Tensor | None = None
        for place, param in enumerate(params):
            param.register_post_accumulate_grad_hook(lambda _, place=place: self._order.append(place))

    def begin_step(self) -> None:
        """Forget what was compared."""
        self._disagreement = None

    def begin_pass(self) -> None:
        """Forget what arrived."""
        del self._order[:]

    def factor(self, device: torch.device) -> Tensor | None:
        """() float64 for a gradient of this pass: 1, or NaN on every rank, so that all skip the step, if ranks differ.

        The host does not wait for it. None without other ranks.

        Collectives: one all_reduce of 2 float64; every rank calls it once a pass.
        """
        if not is_distributed():
            return None
        # Of 16 bits, so that sums of squares are exact. They are equal if, and only if, the variance is 0.
        code = float(zlib.crc32(self._order.tobytes()) & 0xFFFF)
        # Of a few bytes, which the driver takes before it returns: the host does not wait.
        own = torch.tensor([code, code * code], dtype=torch.float64).to(device, non_blocking=True)
        total, squares = all_reduce_sum_(own).unbind()
        disagreement = world_size() * squares - total * total
        known = self._disagreement
        self._disagreement = disagreement if known is None else known + disagreement
        return torch.where(disagreement == 0, 1.0, float("nan"))

    def differ(self) -> bool:
        """True if ranks differed in a pass of this step, on every rank. The host waits for it."""
        return self._disagreement is not None and self._disagreement.item() != 0
