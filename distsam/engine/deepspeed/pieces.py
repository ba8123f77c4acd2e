"""This rank's pieces of parameters under ZeRO stages 1 and 2: parts of flat groups. At stage 0 parameters are whole,
and LocalPieces serves; for stage 3 see `cut_pieces.py`."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from distsam.engine.deepspeed import library
from distsam.engine.deepspeed.arrivals import Arrivals
from distsam.sharding import loss_weight_of
from distsam.sharding.collectives import rank


class FlatPieces:
    """Pieces of ZeRO stages 1 and 2: every rank reads whole weights, but owns the gradients of a flat part, steps that
    part, and sends it to the others.

    A rank that owns nothing of a parameter has an empty piece of it. Parameters that DeepSpeed does not step, because
    they are frozen, are whole on every rank, and count on rank 0.

    Args:
        zero: DeepSpeed's optimizer.
        arrivals: of gradients.
        params: P parameters, the same list on every rank.
        is_moved: which of them the optimizer moves; all when None.
    """

    def __init__(
        self,
        zero: Any,
        arrivals: Arrivals,
        params: Sequence[nn.Parameter],
        is_moved: Sequence[bool] | None = None,
    ) -> None:
        self.params = tuple(params)
        self.loss_weight = loss_weight_of(params)
        self.device = params[0].device
        self.is_alike = False
        self._zero, self._arrivals = zero, arrivals
        self._is_moved = [True] * len(params) if is_moved is None else list(is_moved)
        parts = library.parts_of(zero)
        self._parts = [parts.get(p) for p in params]
        self.owned = [self._owns(part) for part in self._parts]

    def weights(self) -> list[Tensor]:
        """P flat pieces of the weights that passes read."""
        flat = [p.data.view(-1) for p in self.params]
        return [
            w if part is None else w.narrow(0, part.start, part.length)
            for w, part in zip(flat, self._parts, strict=True)
        ]

    def stepped_weights(self) -> list[Tensor]:
        """P flat pieces of the copy that the base steps and that the weights are made of after it."""
        pairs = zip(self.weights(), self._parts, strict=True)
        return [weight if part is None else part.of(part.flat) for weight, part in pairs]

    def gradients(self) -> list[Tensor | None]:
        """P flat pieces of the averaged gradients; None for a parameter that is frozen or not moved.

        Where the ranks' losses came to different parameters, a gradient is NaN. Collectives: see `Arrivals.factor`.
        """
        found = [
            None if part is None or not moves else self._gradient(param, part)
            for param, part, moves in zip(self.params, self._parts, self._is_moved, strict=True)
        ]
        factor = self._arrivals.factor(self.device)
        own = next((gradient for gradient in found if gradient is not None and len(gradient)), None)
        if factor is not None and own is not None:
            own.mul_(factor.to(own.dtype))
        return found

    def gradients_and_sums(self, loss: Tensor, wants_stop: bool) -> None:
        """None: the averages are there after the last backward of a pass."""
        return None

    def clear(self) -> None:
        """Nothing: the engine forgets gradients before every pass."""

    def discard(self) -> None:
        """Forget the gradients, and what a pass that raised has left behind."""
        library.forget_pass(self._zero)

    def publish(self) -> None:
        """Send every rank's part of the weights to the others. Collectives: one all_gather a group and bucket."""
        library.gather_partitions(self._zero)

    def _owns(self, part: library.Part | None) -> bool:
        return part is not None or rank() == 0

    def _gradient(self, param: nn.Parameter, part: library.Part) -> Tensor:
        if not part.length:
            return part.of(part.flat)
        return library.gradient_of(param)
