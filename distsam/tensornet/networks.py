"""The networks within a model: any module that says what its cores are, whatever its class."""

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Protocol, cast

from torch import nn

from distsam.errors import ArgumentError
from distsam.tensornet.core_network import CoreNetwork
from distsam.tensornet.foreign import factorized_tensor, lora_pairs
from distsam.tensornet.spec import NetworkSpec

_MARKS = "_distsam_networks"


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


def as_network(module: object) -> NetworkModule | None:
    """`module`, if it has all that a NetworkModule has."""
    has_spec = isinstance(getattr(module, "spec", None), NetworkSpec)
    is_network = has_spec and hasattr(module, "cores") and hasattr(module, "entry_points")
    return cast(NetworkModule, module) if is_network else None


def mark_network(module: nn.Module, name: str, cores: Sequence[str]) -> None:
    """Says that parameters of `module` are the cores of one network, for `core_networks` to find.

    The full tensor must be linear in each of them; what it is made for, this package need not know.

    Args:
        module: which holds the parameters; it may be marked several times.
        name: of the network, below the module's own: "blocks.0.attention" and "qk" give "blocks.0.attention.qk".
        cores: names of parameters within `module`, such as "query.weight"; they are looked up at each call, since
            sharding replaces them.

    Raises:
        ArgumentError: no such parameter, fewer than two, one of them twice, or a name that is taken.
    """
    known = dict(module.named_parameters(remove_duplicate=False))
    for core in cores:
        if core not in known:
            near = get_close_matches(core, known, n=5, cutoff=0.3) or list(known)[:5]
            raise ArgumentError("cores", f"has {core!r}, which is no parameter; there are {', '.join(near) or 'none'}")
    if len(cores) < 2 or len(set(cores)) < len(cores):
        raise ArgumentError("cores", f"are {list(cores)}; a network has at least two, each its own")
    marks = module.__dict__.setdefault(_MARKS, {})
    if name in marks:
        raise ArgumentError("name", f"is {name!r}, by which this module has a network already")
    marks[name] = tuple(cores)


def core_networks(model: nn.Module) -> list[CoreNetwork]:
    """Every network in `model`, in the order of `named_modules`: modules of ours and others that have what a
    NetworkModule has, those marked by `mark_network`, the pairs of LoRA layers as the peft package makes them, and
    the factorized tensors of tensorly-torch.

    A module that stands in two places is one network.

    Raises:
        ValueError: a core stands twice in one network; the norm laws hold only where T is linear in every core. Or
            the number of cores is not that of the spec.
    """
    found = []
    for name, module in model.named_modules():
        for network in _networks_at(name, module):
            _check(network)
            found.append(network)
    return found


def _networks_at(name: str, module: nn.Module) -> Iterator[CoreNetwork]:
    network = as_network(module)
    if network is not None:
        yield CoreNetwork(name or "network", tuple(network.cores), network.spec)
    marks = module.__dict__.get(_MARKS, {})
    known = dict(module.named_parameters(remove_duplicate=False)) if marks else {}
    for mark, cores in marks.items():
        yield CoreNetwork(f"{name}.{mark}" if name else mark, tuple(known[c] for c in cores), None, tuple(cores))
    yield from lora_pairs(name, module)
    yield from factorized_tensor(name, module)


def _check(network: CoreNetwork) -> None:
    if len({id(core) for core in network.cores}) < len(network.cores):
        raise ValueError(f"network {network.name!r} uses one parameter as two cores; every core must be its own")
    if network.spec is not None and len(network.cores) != network.spec.num_cores:
        raise ValueError(
            f"network {network.name!r} has {len(network.cores)} cores; its spec has {network.spec.num_cores}"
        )
