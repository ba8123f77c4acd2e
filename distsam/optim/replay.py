"""The second pass must see what the first saw, and leave no trace of its own: random numbers and running state."""

from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook


class RandomReplay:
    """Gives two passes the same random numbers, on this rank's CPU and GPU."""

    def __init__(self) -> None:
        self._cpu: Tensor | None = None
        self._cuda: Tensor | None = None

    def record(self) -> None:
        """Remember where the generators stand now, before the first pass."""
        self._cpu = torch.get_rng_state()
        if torch.cuda.is_initialized():
            self._cuda = torch.cuda.get_rng_state()

    def repeat(self) -> None:
        """Put them there again, before the second pass."""
        assert self._cpu is not None
        torch.set_rng_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda)


class KeptBuffers:
    """Inside `with`, whatever a forward does to the buffers of the modules it runs is undone on exit.

    So BatchNorm's running mean and count, or any running state of another module, is that of the first pass alone. The
    modules are found as they are called, by a hook on all modules of the process.

    Args:
        model: its modules are kept without being called, which a compiled model needs: its inner modules call no hooks.
    """

    def __init__(self, model: nn.Module | None) -> None:
        self._model = model
        self._kept: dict[int, tuple[nn.Module, list[tuple[str, Tensor, Tensor]]]] = {}
        self._hook: Any = None

    def __enter__(self) -> None:
        self._kept = {}
        if self._model is not None:
            for module in self._model.modules():
                self._keep(module)
        self._hook = register_module_forward_pre_hook(lambda module, _: self._keep(module))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hook.remove()
        for module, buffers in self._kept.values():
            for name, buffer, value in buffers:
                module._buffers[name] = buffer  # where forward has put another in its place
                # By `data`: a graph that saved the buffer would otherwise take this for a change.
                buffer.data.copy_(value)
        self._kept = {}

    def _keep(self, module: nn.Module) -> None:
        if module._buffers and id(module) not in self._kept:
            # Inference tensors cannot be changed by a pass.
            there = [(n, b) for n, b in module._buffers.items() if b is not None and not b.is_inference()]
            self._kept[id(module)] = (module, [(name, buffer, buffer.data.clone()) for name, buffer in there])
