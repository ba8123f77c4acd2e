"""Values that parameter groups hold for a wrapper: strengths and learning rates, for each parameter or core."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Groups = Sequence[dict[str, Any]]


class GroupKey:
    """A number that each parameter group holds for one wrapper, such as SAM's "rho"; a schedule may change it there.

    Args:
        word: the name of the argument, which is the key too unless somebody inside has that key already (Adadelta has a
            rho, RMSprop an alpha, BAR inside DAS an alpha): then it is `owner` and the word, as in "das_alpha".
        value: what a group gets that does not say.
        owner: name of the wrapper.
        taken: keys of those inside.
    """

    def __init__(self, word: str, value: float, owner: str, taken: Iterable[str]) -> None:
        self.word = word
        self.key = f"{owner}_{word}" if word in set(taken) else word
        self._value = value

    def fill(self, groups: Groups) -> None:
        """Give every group a value.

        Raises:
            ValueError: a value that is negative, infinite or no number.
        """
        _check(self.word, self._value)
        for group in groups:
            _check(self.key, group.setdefault(self.key, self._value))

    def values(self, groups: Groups) -> list[float]:
        """The value of each group; one that was added or loaded without a value gets it here."""
        return [group.setdefault(self.key, self._value) for group in groups]

    def per_parameter(self, groups: Groups, params: Sequence[nn.Parameter]) -> float | list[float]:
        """The one value of all groups, or else one for each of `params`: 0 where it is in no group."""
        values = self.values(groups)
        if len(set(values)) == 1:
            return values[0]
        found = {id(p): v for v, group in zip(values, groups, strict=True) for p in group["params"]}
        return [found.get(id(p), 0.0) for p in params]


def own_keys(optimizer: Optimizer) -> set[str]:
    """The keys that a torch optimizer itself reads in its groups."""
    return set(optimizer.defaults) | {"params"}


def core_rates(param_groups: Sequence[Mapping[str, Any]], cores: Sequence[nn.Parameter]) -> Tensor:
    """(N,) float64 learning rates of each core's parameter group; 0 for a core that the optimizer does not move, or
    frozen. On the host, or, so that nothing waits, on the accelerator where one of them lives there.
    """
    rates = {id(p): group["lr"] for group in param_groups for p in group["params"] if p.requires_grad}
    found = [rates.get(id(core), 0.0) for core in cores]
    devices = {r.device for r in found if isinstance(r, Tensor) and r.device.type != "cpu"}
    if not devices:
        return torch.tensor([float(r) for r in found], dtype=torch.float64)
    here = torch.zeros(len(found), dtype=torch.float64, device=devices.pop())
    for place, rate in zip(here, found, strict=True):
        place += rate.detach() if isinstance(rate, Tensor) else rate
    return here


def shared_rate(param_groups: Sequence[Mapping[str, Any]]) -> float | None:
    """The learning rate of all groups, if they have one that the host knows."""
    rates = [group["lr"] for group in param_groups]
    if len(rates) == 1 and isinstance(rates[0], float):
        return rates[0]
    if any(isinstance(rate, Tensor) and rate.device.type != "cpu" for rate in rates):
        return None
    return float(rates[0]) if all(rate == rates[0] for rate in rates) else None


def _check(name: str, value: float) -> None:
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name}={value}: use a finite number of at least 0")
