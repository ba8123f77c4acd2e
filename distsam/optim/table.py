"""Numbers of all measured cores as one row per network, and back; built once, so that a step only gathers.

On an accelerator the numbers are tensors: rows are padded to the largest network, because a padded sum adds in one
order on every rank; adding by index would not on a GPU. On CPU they are lists of the host's own floats, because of a
few numbers a call of torch or numpy takes longer than all the arithmetic. A formula is written once, for both: what is
done to each core is a function of operators alone, and the rest are the methods that both tables have.

Legend: M networks, n cores together, of the N that are measured. A core that does not move does not count.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import repeat
from math import prod
from typing import Any, Protocol

import torch
from torch import Tensor

from distsam.balance import FirstPass
from distsam.tensornet import CoreNetwork

# A number for each core that counts: (M, K) of at most K cores each, 0 on padding; or lists of floats.
Rows = Any
# A number for each network: (M, 1), or a list of floats.
Sums = Any
# One number for all: () or a float.
Number = Any


class NetworkTable(Protocol):
    """What a formula over networks and cores is made of."""

    def fold(self, values_N: Any) -> Rows:
        """Those of the networks' cores, of all that are measured."""

    def spread(self, values_n: Tensor) -> Rows:
        """From float64 values of the networks' n cores, on the host or the device."""

    def each(self, formula: Callable[..., Any], *operands: Rows | Sums | Number) -> Rows:
        """`formula` of each core's numbers; by operators alone, of which division by 0 is infinite. The first operand
        has a number for each core."""

    def finite(self, rows: Rows) -> Rows:
        """0 where a number is infinite or none."""

    def row_sum(self, rows: Rows) -> Sums:
        """Over the cores of each network."""

    def row_mean(self, rows: Rows) -> Sums:
        """Over the cores of each network that count."""

    def row_max(self, rows: Rows, at_least: float) -> Sums:
        """The largest size, or `at_least` where that is more."""

    def total(self, sums: Sums) -> Number:
        """Over all networks."""

    def num_above(self, sums: Sums, bound: float) -> Tensor | int:
        """Of how many networks the number is larger."""

    def factors(self, changes: Rows) -> list[float] | list[Tensor]:
        """1 + each relative change, in the order of `places`."""

    @property
    def places(self) -> Sequence[int]:
        """Where the cores of `factors` stand in the measured vectors."""

    def unfold(self, rows: Rows, into_N: Tensor) -> Tensor:
        """(N,) a copy of `into_N` with the numbers of the cores in their places."""


class HostTable:
    """Lists of floats, of the cores that count alone.

    Args:
        rows: of each network, the places of its cores in the measured vectors.
        is_moved: for all n cores in order, which ones count.
    """

    def __init__(self, rows: Sequence[Sequence[int]], is_moved: Sequence[bool]) -> None:
        counts = iter(is_moved)
        marked = [[(place, next(counts)) for place in row] for row in rows]
        kept = [[place for place, is_in in row if is_in] for row in marked]
        self._rows = [row for row in kept if row]
        self._members = [i for i, is_in in enumerate(is_moved) if is_in]
        self.places = [place for row in self._rows for place in row]

    def fold(self, values_N: list[float]) -> Rows:
        return [[values_N[place] for place in row] for row in self._rows]

    def spread(self, values_n: Tensor) -> Rows:
        values = values_n.tolist()
        moved = iter([values[i] for i in self._members])
        return [[next(moved) for _ in row] for row in self._rows]

    def each(self, formula: Callable[..., Any], *operands: Rows | Sums | Number) -> Rows:
        try:
            return [list(map(formula, *columns)) for columns in self._columns(operands)]
        except ZeroDivisionError:
            # Python's numbers refuse what a tensor's have an answer for.
            exact = [[map(_as_tensor, column) for column in columns] for columns in self._columns(operands)]
            return [[value.item() for value in map(formula, *columns)] for columns in exact]

    def _columns(self, operands: Sequence[Rows | Sums | Number]) -> Iterator[list[Any]]:
        for i in range(len(self._rows)):
            own = [operand[i] if isinstance(operand, list) else operand for operand in operands]
            yield [values if isinstance(values, list) else repeat(values) for values in own]

    def finite(self, rows: Rows) -> Rows:
        return [[value if math.isfinite(value) else 0.0 for value in row] for row in rows]

    def row_sum(self, rows: Rows) -> Sums:
        return list(map(sum, rows))

    def row_mean(self, rows: Rows) -> Sums:
        return [sum(row) / len(row) for row in rows]

    def row_max(self, rows: Rows, at_least: float) -> Sums:
        return [max(at_least, max(row), -min(row)) for row in rows]

    def total(self, sums: Sums) -> float:
        return sum(sums)

    def num_above(self, sums: Sums, bound: float) -> int:
        return sum([value > bound for value in sums])

    def factors(self, changes: Rows) -> list[float]:
        return [1 + change for row in changes for change in row]

    def unfold(self, rows: Rows, into_N: Tensor) -> Tensor:
        values = into_N.new_tensor([value for row in rows for value in row])
        return into_N.index_copy(0, torch.tensor(self.places), values)


class DeviceTable:
    """Tensors, padded; see HostTable for the arguments.

    Args:
        device: where the measured vectors are.
    """

    def __init__(self, rows: Sequence[Sequence[int]], is_moved: Sequence[bool], device: torch.device) -> None:
        width = max(map(len, rows))
        self.places = [place for row in rows for place in row]
        members = [i * width + j for i, row in enumerate(rows) for j in range(len(row))]
        counts = torch.zeros(len(rows) * width, dtype=torch.bool)
        counts[members] = torch.tensor(is_moved)
        counts = counts.view(len(rows), width)
        self._shape = (len(rows), width)
        self._index = torch.tensor([[*row, *[row[0]] * (width - len(row))] for row in rows], device=device)
        self._counts = None if bool(counts.all()) else counts.to(device)
        self._num_counting = counts.sum(1, keepdim=True, dtype=torch.float64).to(device)
        self._members = None if len(members) == prod(self._shape) else torch.tensor(members, device=device)
        self._targets = torch.tensor(self.places, device=device)
        start = self.places[0]
        is_run = self._members is None and self.places == list(range(start, start + len(self.places)))
        # Cores that follow each other need no look-up.
        self._run = slice(start, start + len(self.places)) if is_run else None

    def fold(self, values_N: Tensor) -> Rows:
        return self._mask(values_N[self._index] if self._run is None else values_N[self._run].view(self._shape))

    def spread(self, values_n: Tensor) -> Rows:
        # Of a few bytes, which the driver takes before it returns: the host does not wait.
        values = values_n.to(self._index.device, non_blocking=True)
        if self._members is not None:
            values = values.new_zeros(prod(self._shape)).index_copy_(0, self._members, values)
        return values.view(self._shape)

    def each(self, formula: Callable[..., Any], *operands: Rows | Sums | Number) -> Rows:
        return self._mask(formula(*operands).expand(self._shape))

    def finite(self, rows: Rows) -> Rows:
        return torch.where(torch.isfinite(rows), rows, 0.0)

    def row_sum(self, rows: Rows) -> Sums:
        return rows.sum(1, keepdim=True)

    def row_mean(self, rows: Rows) -> Sums:
        return self.row_sum(rows) / self._num_counting

    def row_max(self, rows: Rows, at_least: float) -> Sums:
        return rows.abs().amax(1, keepdim=True).clamp(min=at_least)

    def total(self, sums: Sums) -> Tensor:
        total: Tensor = sums.sum()
        return total

    def num_above(self, sums: Sums, bound: float) -> Tensor:
        number: Tensor = (sums > bound).sum()
        return number

    def factors(self, changes: Rows) -> list[Tensor]:
        return list(self._members_of(changes).add(1).unbind())

    def unfold(self, rows: Rows, into_N: Tensor) -> Tensor:
        return into_N.index_copy(0, self._targets, self._members_of(rows))

    def _members_of(self, rows: Rows) -> Tensor:
        flat: Tensor = rows.reshape(-1)
        return flat if self._members is None else flat[self._members]

    def _mask(self, rows: Rows) -> Rows:
        return rows if self._counts is None else torch.where(self._counts, rows, 0.0)


class TableCache:
    """The table of some networks, built anew only where what is measured, or what moves, has changed."""

    def __init__(self, networks: Sequence[CoreNetwork]) -> None:
        self._networks = tuple(networks)
        self._position: Mapping[int, int] | None = None
        self._is_moved: tuple[bool, ...] = ()
        self._table: NetworkTable | None = None

    def get(self, first: FirstPass, is_moved: tuple[bool, ...]) -> NetworkTable:
        """The table for this pass: of the host where the pass was on CPU. `is_moved` says which of the cores count."""
        if self._table is None or self._position is not first.position or self._is_moved != is_moved:
            rows = [[first.position[id(core)] for core in n.cores] for n in self._networks]
            if first.is_on_cpu:
                self._table = HostTable(rows, is_moved)
            else:
                self._table = DeviceTable(rows, is_moved, first.gamma.device)
            self._position, self._is_moved = first.position, is_moved
        return self._table


def _as_tensor(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)
