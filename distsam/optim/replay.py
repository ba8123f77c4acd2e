"""The second pass must see what the first saw: the same random numbers, and BatchNorm counted once."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


class Replay:
    """Records the state of the random generators before a pass and repeats it for another.

    Args:
        model: its normalisation layers keep the running statistics of the first pass; None: they are not looked at.
    """

    def __init__(self, model: nn.Module | None) -> None:
        self._model = model
        self._cpu: Tensor | None = None
        self._cuda: Tensor | None = None

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Remember where the generators stand on entry."""
        self._cpu = torch.get_rng_state()
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            self._cuda = torch.cuda.get_rng_state()
        yield

    @contextmanager
    def again(self) -> Iterator[None]:
        """Start from the remembered state."""
        assert self._cpu is not None
        torch.set_rng_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda)
        yield

    @contextmanager
    def keeping_statistics(self) -> Iterator[None]:
        """Running statistics are as before on exit."""
        kept = [(b, b.clone()) for b in self._running_statistics()]
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in kept:
                    buffer.copy_(value)

    def _running_statistics(self) -> list[Tensor]:
        modules = [] if self._model is None else self._model.modules()
        return [b for m in modules if isinstance(m, _NormBase) for b in m.buffers(recurse=False)]
