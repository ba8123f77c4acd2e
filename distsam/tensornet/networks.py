"""The networks within a model: any module that says what its cores are, whatever its class."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

from torch import nn

from distsam.tensornet.spec import NetworkSpec


class NetworkModule(Protocol):
    """A module whose parameters are the cores of one network; `TensorNetwork` is the first member.

    Attributes:
        spec: what the cores are.
        cores: K parameters, in the order of `spec.cores`; looked up at each call, since sharding replaces them.
        entry_points: names of the methods beside `forward` that compute with the cores.
    """

    @property
    def spec(self) -> NetworkSpec: ...

    @property
    def cores(self) -> Sequence[nn.Parameter] | nn.ParameterList: ...

    @property
    def entry_points(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class CoreNetwork:
    """The cores of one network within a model: the unit over which the norm deviation is taken.

    Args:
        name: path of the network's module in the model, "network" if it is the model itself.
        cores: its parameters as they are now, in the order of the spec.
        spec: what they are; `spec.core_names` has their names.
    """

    name: str
    cores: tuple[nn.Parameter, ...]
    spec: NetworkSpec


def as_network(module: object) -> NetworkModule | None:
    """`module`, if it has all that a NetworkModule has."""
    has_spec = isinstance(getattr(module, "spec", None), NetworkSpec)
    is_network = has_spec and hasattr(module, "cores") and hasattr(module, "entry_points")
    return cast(NetworkModule, module) if is_network else None


def core_networks(model: nn.Module) -> list[CoreNetwork]:
    """Every network in `model`, in the order of `named_modules`.

    Raises:
        ValueError: a core stands twice in one network; the norm laws hold only where T is linear in every core. Or
            the number of cores is not that of the spec.
    """
    found = []
    for name, module in model.named_modules():
        network = as_network(module)
        if network is not None:
            found.append(CoreNetwork(name or "network", tuple(network.cores), network.spec))
            _check(found[-1])
    return found


def _check(network: CoreNetwork) -> None:
    if len({id(core) for core in network.cores}) < len(network.cores):
        raise ValueError(f"network {network.name!r} uses one parameter as two cores; every core must be its own")
    if len(network.cores) != network.spec.num_cores:
        raise ValueError(
            f"network {network.name!r} has {len(network.cores)} cores; its spec has {network.spec.num_cores}"
        )
