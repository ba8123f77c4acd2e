"""This rank's pieces of parameters under ZeRO: parts of flat groups (stages 1 and 2). At stage 0 they are whole, and
LocalPieces serves."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distsam.engine.deepspeed import library
from distsam.sharding import loss_weight_of
from distsam.sharding.collectives import rank


class FlatPieces:
    """Pieces of ZeRO stages 1 and 2: every rank reads whole weights, but owns the gradients of a flat part, steps that
    part, and sends it to the others.

    A rank that owns nothing of a parameter has an empty piece of it. Parameters that DeepSpeed does not step, because
    they are frozen, are whole on every rank, and count on rank 0.

    Args:
        zero: DeepSpeed's optimizer.
        params: P parameters, the same list on every rank.
        is_moved: which of them the optimizer moves; all when None.
    """

    def __init__(self, zero: Any, params: Sequence[nn.Parameter], is_moved: Sequence[bool] | None = None) -> None:
        self.params = tuple(params)
        self.owned = [p.requires_grad or rank() == 0 for p in params]
        self.loss_weight = loss_weight_of(params)
        self.device = params[0].device
        self.is_alike = False
        self._zero = zero
        self._is_moved = [True] * len(params) if is_moved is None else list(is_moved)

    def weights(self) -> list[Tensor]:
        """P flat pieces of the weights that passes read."""
        return [_own_part(p) for p in self.params]

    def stepped_weights(self) -> list[Tensor]:
        """P flat pieces of the copy that the base steps and that the weights are made of after it."""
        return [part if (own := _fragment(p)) is None else own.get_hp_fragment() for p, part in self._parts()]

    def gradients(self) -> list[Tensor | None]:
        """P flat pieces of the averaged gradients; None for a parameter that is frozen or not moved."""
        return [
            None if not moves or not p.requires_grad else part if _fragment(p) is None else library.gradient_of(p)
            for (p, part), moves in zip(self._parts(), self._is_moved, strict=True)
        ]

    def gradients_and_sums(self, loss: Tensor, wants_stop: bool) -> None:
        """None: the averages are there after the last backward of a pass."""
        return None

    def clear(self) -> None:
        """Forget the gradients of the pass."""
        library.forget_gradients(self._zero)

    def discard(self) -> None:
        """The same, and what a backward that raised has left behind."""
        library.forget_backward(self._zero)
        library.forget_gradients(self._zero)

    def publish(self) -> None:
        """Send every rank's part of the weights to the others. Collectives: one all_gather a group and bucket."""
        library.gather_partitions(self._zero)

    def _parts(self) -> list[tuple[nn.Parameter, Tensor]]:
        return list(zip(self.params, self.weights(), strict=True))


def _fragment(param: nn.Parameter) -> Any:
    return library.fragment_of(param) if param.requires_grad else None


def _own_part(param: nn.Parameter) -> Tensor:
    """This rank's part of the weights of `param`, flat, sharing storage."""
    flat = param.data.view(-1)
    if not param.requires_grad:
        return flat
    own = library.fragment_of(param)
    if own is None:
        return torch.empty_like(flat[:0])
    place = own.lp_fragment_address
    return flat.narrow(0, place.start, place.numel)
