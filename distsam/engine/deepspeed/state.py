"""The base optimizer's state from ZeRO stage 1 on, parameter by parameter, in the form of native checkpoints."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from distsam.engine.deepspeed import library
from distsam.engine.deepspeed.assembly import mesh_of_all, put_together, spread, take_part
from distsam.engine.optimizer_state import BASE, is_plain
from distsam.engine.weights import parameters_of


class FlatState:
    """What the base keeps of each parameter, though it keeps it of flat parts of whole groups.

    Args:
        model: its parameters, by name.
        base: the torch optimizer.
        zero: DeepSpeed's.

    Collectives: those of a new process group; every rank builds one.
    """

    def __init__(self, model: nn.Module, base: Optimizer, zero: Any) -> None:
        self._model, self._base = model, base
        self._parts = library.parts_of(zero)
        self._mesh = mesh_of_all(next(model.parameters()).device)
        self._incoming: dict[str, tuple[nn.Parameter, str, Tensor]] = {}

    def tensors(self) -> dict[str, Tensor]:
        """`optim.<parameter>.<key>` -> a copy. Collectives: an all_reduce a tensor; every rank calls it."""
        self.take_in()
        found = {}
        for name, param, part in self._stepped():
            for key, value in self._base.state.get(part.flat, {}).items():
                if isinstance(value, Tensor):
                    is_cut = value.shape == part.flat.shape
                    found[f"{BASE}.{name}.{key}"] = self._spread(param, part, value) if is_cut else value
        return found

    def plain(self) -> dict[str, dict[str, Any]]:
        """Parameter -> what the base keeps of it that is no tensor."""
        found = {
            name: {key: value for key, value in self._base.state.get(part.flat, {}).items() if is_plain(value)}
            for name, _, part in self._stepped()
        }
        return {name: values for name, values in found.items() if values}

    def load_plain(self, values: Mapping[str, Mapping[str, Any]]) -> None:
        """Restore what `plain` gave."""
        for name, _, part in self._stepped():
            if name in values:
                self._base.state[part.flat].update(values[name])

    def allocate(self, shapes: Mapping[str, tuple[torch.Size, torch.dtype]]) -> None:
        """Make room for what a checkpoint of these shapes holds; `incoming` is filled before the next step."""
        params = {name: param for name, param, _ in self._stepped()}
        for full_name, (shape, dtype) in shapes.items():
            prefix, _, rest = full_name.partition(".")
            name, _, key = rest.rpartition(".")
            if prefix == BASE and name in params:
                param = params[name]
                is_cut = shape == library.shape_of(param)
                whole = torch.zeros(shape, dtype=dtype, device=param.device if is_cut else None)
                self._incoming[full_name] = param, key, spread(whole, self._mesh) if is_cut else whole

    def incoming(self) -> dict[str, Tensor]:
        """The room that `allocate` made."""
        return {name: room for name, (_, _, room) in self._incoming.items()}

    @torch.no_grad()
    def take_in(self) -> None:
        """Put what was loaded into the flat parts. Collectives: an all_gather a tensor; every rank calls it."""
        incoming, self._incoming = self._incoming, {}
        for param, key, room in incoming.values():
            part = self._parts[param]
            state = self._base.state[part.flat]
            if room.shape != library.shape_of(param):
                state[key] = room
                continue
            if key not in state:
                state[key] = torch.zeros_like(part.flat, dtype=room.dtype)
            part.of(state[key]).copy_(take_part(room, part.start, part.length))

    def _stepped(self) -> Iterator[tuple[str, nn.Parameter, library.Part]]:
        for name, param in parameters_of(self._model).items():
            if param in self._parts:
                yield name, param, self._parts[param]

    def _spread(self, param: nn.Parameter, part: library.Part, value: Tensor) -> Tensor:
        return spread(put_together(part.of(value), part.start, library.shape_of(param)), self._mesh)
