"""How a pass contracts the networks of a model: seen in one forward pass of shapes, without numbers."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_map_only

from distsam.sharding.collectives import apart
from distsam.sharding.network_cost import NetworkUse, merged
from distsam.sharding.pieces import cuttable_networks, network_weights
from distsam.sharding.plan import NetworkWeights
from distsam.tasks.task import Task
from distsam.tensornet.contractor import Cores, WholeCores
from distsam.tensornet.products import MultiplyPlans, RowsPlans
from distsam.train.ledger import Ledger


def seen_uses(
    task: Task, model: nn.Module, batch: Any, *, times: int, device: torch.device, mode: FakeTensorMode | None = None
) -> tuple[NetworkUse, ...]:
    """The uses of the networks that can be cut, in a pass over the whole batch; none where the loss needs values.

    Weights, buffers and torch's random numbers stay as they are.

    Args:
        task: whose loss is looked at.
        model: whole, before it is placed; deferred networks need no numbers.
        batch: a micro-batch of one data rank.
        times: that many of them make a batch.
        device: where the model is to be.
        mode: in which `model` was made, if it was made of shapes alone.
    """
    mode = mode or FakeTensorMode(allow_non_fake_inputs=True)
    found: list[NetworkUse] = []
    networks = {network.parameters: network for network in network_weights(model)}
    with _recording(model, networks, found), _of_shapes(model, mode, device):
        try:
            # The ledger answers where our own code looks at values, such as the range of indices.
            with mode, _Alone().watching(), apart(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # they are for those who train
                task.loss(model, tree_map_only(Tensor, lambda t: _fake(t, mode, device), batch))
        except Exception:  # a loss of the user's own may do anything with values, which are not there, or send some
            return ()
    return merged(NetworkUse(use.network, use.kind, times * use.num_rows, use.modes) for use in found)


class _Alone(Ledger):
    """What would be sent raises: only one rank looks, and would wait for the others for ever."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace in ("c10d", "_c10d_functional"):
            raise RuntimeError(f"{func} of one rank alone")
        return super().__torch_dispatch__(func, types, args, kwargs)


@contextmanager
def _recording(
    model: nn.Module, networks: dict[tuple[str, ...], NetworkWeights], found: list[NetworkUse]
) -> Iterator[None]:
    names = {id(p): name for name, p in model.named_parameters()}
    modules = cuttable_networks(model)
    for module in modules:
        network = networks.get(tuple(names[id(core)] for core in module.cores))
        if network is not None:
            module.contract_with(_Recorder(network, found))
    try:
        yield
    finally:
        for module in modules:
            module.contract_with(WholeCores(module.spec))


class _Recorder(WholeCores):
    """Computes as one process does, and notes what was asked for."""

    def __init__(self, network: NetworkWeights, found: list[NetworkUse]) -> None:
        super().__init__(network.spec)
        self._network, self._found = network, found

    def entries(self, cores: Cores, indices: Tensor) -> Tensor:
        self._found.append(NetworkUse(self._network, "entries", len(indices)))
        return super().entries(cores, indices)

    def dense(self, cores: Cores) -> Tensor:
        self._found.append(NetworkUse(self._network, "dense"))
        return super().dense(cores)

    def multiply(self, cores: Cores, vectors: Tensor, plans: MultiplyPlans) -> Tensor:
        self._found.append(NetworkUse(self._network, "multiply", len(vectors), plans.modes))
        return super().multiply(cores, vectors, plans)

    def rows(self, cores: Cores, positions: Tensor, plans: RowsPlans) -> Tensor:
        self._found.append(NetworkUse(self._network, "rows", len(positions), plans.modes))
        return super().rows(cores, positions, plans)


@contextmanager
def _of_shapes(model: nn.Module, mode: FakeTensorMode, device: torch.device) -> Iterator[None]:
    """Inside, the parameters and buffers of `model` have no numbers."""
    made: dict[int, Any] = {}  # what stands in two places stays one

    def shape_of(tensor: Tensor | None) -> Any:
        if tensor is not None and id(tensor) not in made:
            new = _fake(tensor, mode, device)
            is_param = isinstance(tensor, nn.Parameter)
            made[id(tensor)] = nn.Parameter(new, tensor.requires_grad) if is_param else new
        return None if tensor is None else made[id(tensor)]

    before: list[tuple[Any, dict[str, Any]]] = [
        (held, dict(held)) for module in model.modules() for held in (module._parameters, module._buffers)
    ]
    try:
        for held, tensors in before:
            held.update({name: shape_of(tensor) for name, tensor in tensors.items()})
        yield
    finally:
        for held, tensors in before:
            held.update(tensors)


def _fake(tensor: Tensor, mode: FakeTensorMode, device: torch.device) -> Tensor:
    if tensor.is_meta:
        with mode:
            return torch.empty_like(tensor, device=device)
    return tensor.detach() if isinstance(tensor, FakeTensor) else mode.from_tensor(tensor.detach())
