"""The second pass must see what the first saw, and leave no trace of its own: random numbers and running state."""

from types import TracebackType
from typing import Any
from weakref import WeakKeyDictionary

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
        self._visited: dict[int, nn.Module] = {}
        # The copies stay from step to step: to allocate them anew costs more than to fill them.
        self._kept: WeakKeyDictionary[nn.Module, list[tuple[str, Tensor, Tensor]]] = WeakKeyDictionary()
        self._hook: Any = None

    def __reduce__(self) -> tuple[type["KeptBuffers"], tuple[nn.Module | None]]:
        # Between two steps there is nothing to undo, and a copy has modules of its own.
        return KeptBuffers, (self._model,)

    def __enter__(self) -> None:
        self._visited.clear()
        if self._model is not None:
            for module in self._model.modules():
                self._keep(module, None)
        self._hook = register_module_forward_pre_hook(self._keep)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hook.remove()
        for module in self._visited.values():
            for name, buffer, value in self._kept[module]:
                module._buffers[name] = buffer  # where forward has put another in its place
                # By `data`: a graph that saved the buffer would otherwise take this for a change.
                buffer.data.copy_(value)
        self._visited.clear()

    def _keep(self, module: nn.Module, _: Any) -> None:
        """Copy the buffers of a module that is about to run for the first time in this pass."""
        if not module._buffers or id(module) in self._visited:
            return
        rooms = {name: room for name, _, room in self._kept.get(module, ())}
        self._kept[module] = [
            (name, buffer, _copied(buffer.data, rooms.get(name)))
            for name, buffer in module._buffers.items()
            if buffer is not None and not buffer.is_inference()  # which a pass cannot change
        ]
        self._visited[id(module)] = module


def _copied(values: Tensor, room: Tensor | None) -> Tensor:
    """A copy of `values`, in `room` where it fits."""
    # What was copied under inference_mode cannot be written outside it.
    if (
        room is None
        or room.is_inference()
        or (room.shape, room.dtype, room.device) != (values.shape, values.dtype, values.device)
    ):
        return values.clone()
    return room.copy_(values)
