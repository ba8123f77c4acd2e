"""What every engine promises to the training loop and to checkpoints."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor


class Engine(Protocol):
    """Runs the steps of one model with one optimizer, which meanwhile are used through it alone.

    State is weights, tensors placed as they are, and plain values that JSON can hold. A run that loads
    all of it goes on bit for bit.
    """

    def step(self, losses: Sequence[Callable[[], Tensor]]) -> Tensor:
        """One update of the weights.

        Args:
            losses: one callable per micro-batch, each giving this rank's loss on it, with a gradient. The mean of them,
                and over the ranks along the data axes, is what is minimised. SAM calls each one twice.

        Returns:
            () that mean on this rank, at the weights before the update, detached, on the device.

        Collectives: those of the optimizer's step; gradients are reduced once a sweep over the micro-batches, not
            once each. Every rank calls it with the same number of micro-batches.

        Raises:
            ValueError: no micro-batch.
            RuntimeError: the engine is closed.
            TrainingDiverged: too many non-finite steps in a row.
        """
        ...

    def request_stop(self) -> None:
        """This rank wants the run to end; all ranks learn it in their next step."""
        ...

    @property
    def stop_requested(self) -> bool:
        """True, on all ranks after the same step, once any rank has called `request_stop`."""
        ...

    @property
    def num_steps(self) -> int:
        """How many steps were taken, also before the state was loaded; skipped ones included."""
        ...

    def counters(self) -> dict[str, int]:
        """What was counted, by name; the same on every rank."""
        ...

    def state(self) -> dict[str, Any]:
        """Everything of the engine, optimizer and schedules that is no tensor, for JSON; the same on every rank."""
        ...

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` gave. A group value that was built otherwise now than then keeps its new value.

        Raises:
            ArgumentError: the state is that of another number of parameter groups or schedules.
        """
        ...

    def weights(self) -> dict[str, Tensor]:
        """Name -> parameter or buffer of the model, but for `frozen_parameters`, of its full shape, as in a checkpoint.

        Sharing memory, or copies where weights are kept in another form: `put_weights` takes changes back.

        Collectives: where they are copies, one or more a tensor; every rank calls it.
        """
        ...

    def put_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the model's tensors to `tensors`, named and placed as those of `weights`.

        Collectives: as `weights`; every rank calls it.
        """
        ...

    def state_tensors(self) -> dict[str, Tensor]:
        """Name -> tensor of the optimizers' state, sharing memory; placed as its parameter where it has its shape."""
        ...

    def allocate_state(self, shapes: Mapping[str, tuple[torch.Size, torch.dtype]]) -> dict[str, Tensor]:
        """`state_tensors` with zeros for those of a checkpoint that no step has made yet, to be filled by loading.

        Args:
            shapes: name -> (full shape, dtype) of a checkpoint's tensors; names that are not the engine's are passed
                over.
        """
        ...

    def close(self) -> None:
        """No step after this; what the engine holds beside model and optimizer is freed. A second call does nothing."""
        ...
