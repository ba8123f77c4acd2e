"""The base optimizer's state under ZeRO stages 1 and 2, parameter by parameter, in the form of native checkpoints."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.optim import Optimizer

from distsam.engine.deepspeed import library
from distsam.engine.optimizer_state import BASE, is_plain, parameters_of
from distsam.sharding.collectives import all_reduce_sum_


class FlatState:
    """What the base keeps of each parameter, though it keeps it of flat parts of whole groups.

    In a checkpoint every tensor has the shape of its parameter, cut along its first dim, so that any number of ranks,
    and any engine, can load it. To get there a tensor is put together on every rank, one at a time.

    Args:
        model: its parameters, by name.
        groups: of the optimizer, with those parameters.
        base: the torch optimizer.
        zero: DeepSpeed's.
    """

    def __init__(self, model: nn.Module, groups: list[dict[str, Any]], base: Optimizer, zero: Any) -> None:
        self._model, self._base, self._zero = model, base, zero
        self._group_of = {p: i for i, group in enumerate(groups) for p in group["params"]}
        device = next(model.parameters()).device
        self._mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        self._incoming: dict[str, tuple[nn.Parameter, str, Tensor]] = {}

    def tensors(self) -> dict[str, Tensor]:
        """`optim.<parameter>.<key>` -> a copy. Collectives: an all_reduce a tensor; every rank calls it."""
        self.take_in()
        found = {}
        for name, param, state, flat in self._states():
            for key, value in state.items():
                if isinstance(value, Tensor):
                    is_cut = value.shape == flat.shape
                    found[f"{BASE}.{name}.{key}"] = self._spread(self._whole(param, value)) if is_cut else value
        return found

    def plain(self) -> dict[str, dict[str, Any]]:
        """Parameter -> what the base keeps of it that is no tensor."""
        found = {
            name: {key: value for key, value in state.items() if is_plain(value)}
            for name, _, state, _ in self._states()
        }
        return {name: values for name, values in found.items() if values}

    def load_plain(self, values: Mapping[str, Mapping[str, Any]]) -> None:
        """Restore what `plain` gave."""
        for name, _, _, flat in self._states():
            if name in values:
                self._base.state[flat].update(values[name])

    def allocate(self, shapes: Mapping[str, tuple[torch.Size, torch.dtype]]) -> None:
        """Make room for what a checkpoint of these shapes holds; `incoming` is filled before the next step."""
        params = dict(self._moved())
        for full_name, (shape, dtype) in shapes.items():
            prefix, _, rest = full_name.partition(".")
            name, _, key = rest.rpartition(".")
            if prefix == BASE and name in params:
                param = params[name]
                whole = torch.zeros(shape, dtype=dtype, device=param.device if shape == param.shape else None)
                room = self._spread(whole) if shape == param.shape else whole
                self._incoming[full_name] = param, key, room

    def incoming(self) -> dict[str, Tensor]:
        """The room that `allocate` made."""
        return {name: room for name, (_, _, room) in self._incoming.items()}

    @torch.no_grad()
    def take_in(self) -> None:
        """Put what was loaded into the flat parts. Collectives: an all_gather a tensor; every rank calls it."""
        incoming, self._incoming = self._incoming, {}
        for param, key, room in incoming.values():
            flat = library.flat_groups(self._zero)[self._group_of[param]]
            state = self._base.state[flat]
            if room.shape != param.shape:
                state[key] = room
                continue
            if key not in state:
                state[key] = torch.zeros_like(flat, dtype=room.dtype)
            whole = room.full_tensor() if isinstance(room, DTensor) else room
            own = library.fragment_of(param)
            if own is not None:
                part = whole.reshape(-1).narrow(0, own.lp_fragment_address.start, own.lp_fragment_address.numel)
                _part_of(state[key], own).copy_(part)

    def _moved(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, param in parameters_of(self._model).items():
            if param.requires_grad and param in self._group_of:
                yield name, param

    def _states(self) -> Iterator[tuple[str, nn.Parameter, dict[str, Any], Tensor]]:
        """Name, parameter, state of the flat part that it lies in, and that part."""
        for name, param in self._moved():
            flat = library.flat_groups(self._zero)[self._group_of[param]]
            yield name, param, self._base.state.get(flat, {}), flat

    def _whole(self, param: nn.Parameter, value: Tensor) -> Tensor:
        """The tensor of one parameter, of whose flat form each rank holds a part."""
        whole = torch.zeros(param.numel(), dtype=value.dtype, device=value.device)
        own = library.fragment_of(param)
        if own is not None:
            address = own.lp_fragment_address
            whole.narrow(0, address.start, address.numel).copy_(_part_of(value, own))
        # As bytes: no two ranks have the same place, and the sum of a byte and zeros is that byte, also of a -0.0.
        all_reduce_sum_(whole.view(torch.uint8))
        return whole.view(param.shape)

    def _spread(self, whole: Tensor) -> Tensor:
        """This rank's part along the first dim, as a DTensor."""
        if self._mesh.size() == 1 or not whole.dim():
            return whole
        parts = whole.chunk(self._mesh.size())
        place = dist.get_rank()
        own = parts[place].clone() if place < len(parts) else whole[:0].clone()
        return DTensor.from_local(
            own, self._mesh, [Shard(0)], run_check=False, shape=whole.shape, stride=whole.stride()
        )


def _part_of(flat: Tensor, own: Any) -> Tensor:
    """The part of one parameter in a tensor laid out as the flat part of its group."""
    return flat.narrow(0, own.hp_fragment_address.start, own.hp_fragment_address.numel)
