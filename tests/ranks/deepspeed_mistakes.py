"""Wrong recipes for SAM under ZeRO, each made by a patch: the tests of the right one must see them."""

from contextlib import ExitStack
from typing import Any
from unittest import mock

from torch import Tensor


def never_sent(stack: ExitStack, engine: Any) -> None:
    """The perturbed parts stay with the ranks that own them; what was gathered before is read on."""
    from distsam.engine.deepspeed import library

    stack.enter_context(mock.patch.object(library, "gather_partitions"))
    stack.enter_context(mock.patch.object(library, "gather_again"))


def copies_perturbed(stack: ExitStack, engine: Any) -> None:
    """What the base steps is perturbed in place of what passes read."""
    pieces = type(engine.optimizer.guard.meter.pieces)
    read = pieces.weights

    def copies(self: Any) -> list[Tensor]:
        with mock.patch.object(pieces, "weights", read):
            return self.stepped_weights()  # type: ignore[no-any-return]

    stack.enter_context(mock.patch.object(pieces, "weights", copies))


def never_forgotten(stack: ExitStack, engine: Any) -> None:
    """The gradients of one pass are left for the next."""
    from distsam.engine.deepspeed import library
    from distsam.sharding import LocalPieces

    stack.enter_context(mock.patch.object(LocalPieces, "clear"))
    stack.enter_context(mock.patch.object(library, "forget_gradients"))
    stack.enter_context(mock.patch.object(type(engine), "_sweep", _sweep_on_top))


def _sweep_on_top(engine: Any, losses: Any) -> Tensor:
    for position, compute in enumerate(losses):
        engine._engine.set_gradient_accumulation_boundary(position == len(losses) - 1)
        loss = engine._backward(compute, len(losses))
    return loss


def shares_gradients(stack: ExitStack, engine: Any) -> None:
    """The first pass's gradients are left where the second pass writes."""
    from distsam.engine.deepspeed import library

    def in_place(zero: Any, part: Any) -> Tensor:
        group, place = part.index
        found: Tensor = zero.averaged_gradients[group][place].view(-1).narrow(0, 0, part.length)
        return found

    stack.enter_context(mock.patch.object(library, "copy_gradient", in_place))


def automatic_boundaries(stack: ExitStack, engine: Any) -> None:
    """DeepSpeed counts the micro-batches, and SAM's second pass with them."""
    engine._engine.set_gradient_accumulation_boundary(None)
    engine._engine._config.gradient_accumulation_steps = 2
    stack.enter_context(mock.patch.object(engine._engine, "set_gradient_accumulation_boundary"))


def default_clipping(stack: ExitStack, engine: Any) -> None:
    """DeepSpeed's default bound on the gradient."""
    engine._engine._config.gradient_clipping = 0.05
    if engine._zero is not None:
        engine._zero.clip_grad = 0.05


MISTAKES = {
    mistake.__name__: mistake
    for mistake in (
        never_sent,
        copies_perturbed,
        never_forgotten,
        shares_gradients,
        automatic_boundaries,
        default_clipping,
    )
}
