"""Core norms balanced explicitly: every core times a factor of its own, before the base step.

Legend: eta learning rate, alpha strength.
"""

from collections.abc import Iterable, Mapping
from itertools import compress
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from distsam.balance import FirstPass
from distsam.optim.groups import core_rates, shared_rate
from distsam.optim.table import NetworkTable, Number, Rows, TableCache
from distsam.optim.wrapper import OnePass, descend
from distsam.sharding import Pieces
from distsam.tensornet import CoreNetwork


class Rescale(Protocol):
    """A rule that says by how much each core grows, from what the first pass measured.

    Attributes:
        name: what its counters are named by.
    """

    name: str

    def growth(self, first: FirstPass, table: NetworkTable, alpha: Number | Rows, rate: Number | Rows) -> Rows:
        """Relative change of each core per learning rate, float64.

        Args:
            first: the norms of all measured cores; `table.fold` picks those of the networks.
            table: networks and cores, and what formulas are made of.
            alpha, rate: strength and learning rate, one number, or one for each core.
        """
        ...

    def counts(self) -> Mapping[str, Tensor | int]:
        """What it counts, on the device where it is counted there."""
        ...

    def load_counts(self, counts: Mapping[str, int]) -> None:
        """Restore what `counts` gave."""
        ...


class Rescaling(OnePass):
    """A wrapper that multiplies every core of its networks by 1 + eta growth before the base step.

    Weight tensors are touched once, in place; no collective of its own, no wait of the host.

    Args:
        base_optimizer: any torch optimizer, or another Rescaling.
        networks: from `core_networks(model)`, after the model was sharded.
        rescale: how much each core grows.
        alpha: strength of the parameter groups that do not give their own; they hold it under the key
            `group_key("alpha")`, where a schedule may change it.
        max_skipped: so many non-finite steps in a row raise TrainingDiverged.
    """

    def __init__(
        self,
        base_optimizer: Optimizer,
        networks: Iterable[CoreNetwork],
        rescale: Rescale,
        alpha: float,
        max_skipped: int = 10,
    ) -> None:
        super().__init__(base_optimizer, max_skipped, rescale.name)
        if isinstance(networks, nn.Module):
            raise TypeError("networks is a module: pass core_networks(model), taken after the model was sharded")
        self._networks = tuple(networks)
        if not self._networks:
            raise ValueError("networks is empty: pass core_networks(model), taken after the model was sharded")
        self.rescale = rescale
        self._alpha = self.add_key("alpha", alpha)
        self._cores = [core for n in self._networks for core in n.cores]
        self._tables = TableCache(self._networks)
        self._is_member: list[bool] = []
        self._ids: list[int] = []
        self._last: tuple[NetworkTable, Any, FirstPass] | None = None

    @property
    def networks(self) -> tuple[CoreNetwork, ...]:
        """The networks whose cores are rescaled."""
        return self._networks

    @property
    def growth(self) -> Tensor | None:
        """(N,) float64 relative change of each measured core by the last rescale, per learning rate."""
        if self._last is None:
            return None
        table, growth, first = self._last
        return table.unfold(growth, torch.zeros_like(first.gamma))

    def own_counters(self) -> Mapping[str, Tensor | int]:
        """What the rule counts."""
        return {f"{self.name}/{what}": count for what, count in self.rescale.counts().items()}

    def load_own_counters(self, counters: Mapping[str, int]) -> None:
        """Restore what the rule counted."""
        self.rescale.load_counts({name.split("/")[1]: count for name, count in counters.items()})

    def apply(self, first: FirstPass, pieces: Pieces) -> None:
        """Rescale the cores by what the first pass measured, then the base's step."""
        is_moved = tuple(
            [p.requires_grad and is_in for p, is_in in zip(self._cores, self._are_in_groups(), strict=True)]
        )
        self._last = None
        if any(is_moved):
            table = self._tables.get(first, is_moved)
            rate = self._learning_rate(table, is_moved)
            growth = self.rescale.growth(first, table, self._strength(table), rate)
            self._last = table, growth, first
            self._scale(pieces, table, table.each(lambda g, eta: g * eta, growth, rate))
        descend(self.base, first, pieces)

    def _are_in_groups(self) -> list[bool]:
        """For each core, does the optimizer have it? Looked up again when parameters were added or replaced."""
        ids = [id(p) for group in self.param_groups for p in group["params"]]
        if ids != self._ids:
            members = set(ids)
            self._is_member, self._ids = [id(core) in members for core in self._cores], ids
        return self._is_member

    def _learning_rate(self, table: NetworkTable, is_moved: tuple[bool, ...]) -> Any:
        """One number where all cores that move share it and the host knows it, else one for each."""
        rate = shared_rate(self.param_groups)
        if rate is not None:
            return rate
        rates = core_rates(self.param_groups, self._cores)
        if rates.device.type == "cpu" and len(shared := set(compress(rates.tolist(), is_moved))) == 1:
            return shared.pop()
        return table.spread(rates)

    def _strength(self, table: NetworkTable) -> Any:
        alpha = self._alpha.per_parameter(self.param_groups, self._cores)
        return table.spread(torch.tensor(alpha, dtype=torch.float64)) if isinstance(alpha, list) else alpha

    def _scale(self, pieces: Pieces, table: NetworkTable, changes: Rows) -> None:
        # What the base is about to move, from which the weights of the next pass are made.
        weights = pieces.stepped_weights()
        torch._foreach_mul_([weights[place] for place in table.places], table.factors(changes))
