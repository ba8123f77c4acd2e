"""The cores of one network, as balance and optimizers take them."""

from dataclasses import dataclass

from torch import nn

from distsam.tensornet.spec import NetworkSpec


@dataclass(frozen=True)
class CoreNetwork:
    """The cores of one network within a model: the unit over which the norm deviation is taken.

    Args:
        name: path of the network's module in the model, "network" if it is the model itself.
        cores: its parameters as they are now, in the order of the spec.
        spec: what they are; None for networks of other packages and marked ones.
        core_names: as many as cores, none twice; those of the spec, or core_0, core_1, ..., when not given.
    """

    name: str
    cores: tuple[nn.Parameter, ...]
    spec: NetworkSpec | None = None
    core_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.core_names:
            named = self.spec.core_names if self.spec else tuple(f"core_{k}" for k in range(len(self.cores)))
            object.__setattr__(self, "core_names", named)
