"""Who runs forward, backward and step: plain torch."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from distsam.optim import Wrapper


class NativeEngine:
    """Runs a step of a model with an optimizer of distsam.

    Args:
        model: placed by `shard`.
        optimizer: built after that.
    """

    def __init__(self, model: nn.Module, optimizer: Wrapper) -> None:
        self.model = model
        self.optimizer = optimizer

    def step(self, compute_loss: Callable[[], Tensor]) -> Tensor:
        """One update of the weights.

        Args:
            compute_loss: this rank's loss, with a gradient; its mean over the ranks is what is minimised. Called
                twice by SAM: the same batch both times.

        Returns:
            () this rank's loss at the weights before the update, detached, on the device.

        Collectives: those of the optimizer's step; every rank calls it.
        """

        def closure() -> Tensor:
            self.optimizer.zero_grad(set_to_none=True)
            loss = compute_loss()
            loss.backward()
            return loss

        loss = self.optimizer.step(closure)  # type: ignore[arg-type]
        assert isinstance(loss, torch.Tensor)
        return loss
