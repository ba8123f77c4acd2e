"""What all cores but one give at an entry: T's entries are linear in each core.

The entry at position i is <row of the core at i's positions in the core's own modes, environment of i>: the environment
is what all other cores give there, over the bonds of the core.
"""

# B entries, N some of them, C combinations of positions, R rows of a core, P unknowns of a row.

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod

from torch import Tensor

from distsam.tensornet.contraction import ContractionPlan, Indices, contract, plan_contraction
from distsam.tensornet.planner import BATCH
from distsam.tensornet.spec import NetworkSpec

# Numbers of the environments that are made at a time: still in a core's cache when they are multiplied.
PIECE_ELEMENTS = 2**17


@dataclass(frozen=True)
class RowForm:
    """How one core of a network is cut into rows.

    Args:
        modes, bonds: its indices of each kind, in the order of its dims.
        dims: its dims, those of the modes first.
        row_shape: sizes of the modes; their product is the number of rows.
        bond_shape: sizes of the bonds; their product is the number of unknowns of a row.
    """

    modes: Indices
    bonds: Indices
    dims: tuple[int, ...]
    row_shape: tuple[int, ...]
    bond_shape: tuple[int, ...]

    @property
    def num_rows(self) -> int:
        """R."""
        return prod(self.row_shape)

    @property
    def num_unknowns(self) -> int:
        """P."""
        return prod(self.bond_shape)

    def rows_of(self, core: Tensor) -> Tensor:
        """(R, P) the rows of a core; not always a view of it."""
        return core.permute(self.dims).reshape(self.num_rows, self.num_unknowns)

    def core_of(self, rows_RP: Tensor) -> Tensor:
        """The core of these rows."""
        back = sorted(range(len(self.dims)), key=self.dims.__getitem__)
        return rows_RP.reshape(*self.row_shape, *self.bond_shape).permute(back)


@lru_cache(maxsize=4096)
def row_form(spec: NetworkSpec, k: int) -> RowForm:
    """The rows of core k."""
    core, place = spec.cores[k], spec.place_of_mode
    mode_dims = [d for d, index in enumerate(core) if index in place]
    bond_dims = [d for d, index in enumerate(core) if index not in place]
    modes, bonds = tuple(core[d] for d in mode_dims), tuple(core[d] for d in bond_dims)
    sizes = tuple(map(spec.size, modes)), tuple(map(spec.size, bonds))
    return RowForm(modes, bonds, (*mode_dims, *bond_dims), *sizes)


@dataclass(frozen=True)
class _Others:
    """The network without one core.

    Args:
        cores: which are left.
        modes: theirs.
        bonds: those of the lone core that any of them carries.
        table: their contraction over all positions, where that costs less than one for each entry; else None.
        join: the contraction of their rows for a batch of entries.
    """

    cores: tuple[int, ...]
    modes: Indices
    bonds: Indices
    table: ContractionPlan | None
    join: ContractionPlan | None


def table_modes(spec: NetworkSpec, k: int, num_entries: int) -> Indices | None:
    """The modes of all cores but k, if their combinations are no more than the entries: then they get a table."""
    others = _others(spec, k, num_entries, 1)
    return None if others.table is None else others.modes


@lru_cache(maxsize=4096)
def _others(spec: NetworkSpec, k: int, num_entries: int, length: int) -> _Others:
    cores = tuple(j for j in range(spec.num_cores) if j != k)
    carried = {index for j in cores for index in spec.cores[j]}
    modes = tuple(mode for mode in spec.modes if mode in carried)
    bonds = tuple(bond for bond in row_form(spec, k).bonds if bond in carried)
    if not cores:
        return _Others(cores, modes, bonds, None, None)
    operands = tuple(spec.cores[j] for j in cores)
    if prod(map(spec.size, modes)) <= num_entries:
        return _Others(cores, modes, bonds, plan_contraction(operands, (*modes, *bonds), spec.sizes), None)
    gathered = tuple(_with_batch(spec, operand) for operand in operands)
    sizes = (*spec.sizes, (BATCH, length))
    return _Others(cores, modes, bonds, None, plan_contraction(gathered, (BATCH, *bonds), sizes))


def _with_batch(spec: NetworkSpec, core: Indices) -> Indices:
    """The core's indices once one batch stands for all its modes, in front."""
    bonds = tuple(index for index in core if index not in spec.place_of_mode)
    return bonds if len(bonds) == len(core) else (BATCH, *bonds)


class Environments:
    """What all cores but one give at each entry, over the bonds of that one.

    Args:
        spec: of the network.
        k: the core that is left out.
        cores: K tensors; of core k only dtype and device are looked at.
        columns: (order, B) int64, contiguous: the positions of all entries, mode by mode.
    """

    def __init__(self, spec: NetworkSpec, k: int, cores: Sequence[Tensor], columns: Tensor) -> None:
        self._spec, self._num_unknowns = spec, row_form(spec, k).num_unknowns
        self._like, self._columns = cores[k], columns
        num_entries = columns.shape[1]
        length = max(1, min(num_entries, PIECE_ELEMENTS // self._num_unknowns))
        self._others = _others(spec, k, num_entries, length)
        taken = [cores[j] for j in self._others.cores]
        if self._others.table is not None:
            self._rows = [contract(self._others.table, taken).reshape(-1, self._num_unknowns)]
        else:
            self._rows = [_gatherable(spec, j, core) for j, core in zip(self._others.cores, taken, strict=True)]

    @property
    def table(self) -> Tensor | None:
        """(C, P) of every combination of positions in the other cores' modes; None where it is not made.

        Not always contiguous.
        """
        return None if self._others.table is None else self._rows[0]

    def at(self, entries: Tensor) -> Tensor:
        """(N, P), of (N,) int64 entries."""
        others = self._others
        if others.join is None and others.table is None:  # the network is this core alone
            return self._like.new_ones(len(entries), 1)
        if others.join is None:
            self._rows[0] = self._rows[0].contiguous()  # else every gather takes several times as long
            return self._taken(self._rows[0], others.modes, entries).expand(len(entries), -1)
        found = [
            self._taken(rows, row_form(self._spec, j).modes, entries)
            for j, rows in zip(others.cores, self._rows, strict=True)
        ]
        return contract(others.join, found).reshape(len(entries), self._num_unknowns)

    def _taken(self, rows: Tensor, modes: Indices, entries: Tensor) -> Tensor:
        """The row of each entry; where there are no modes, the one that is there."""
        row_N: Tensor | None = None
        for mode in modes:
            column = self._columns[self._spec.place_of_mode[mode]].index_select(0, entries)
            row_N = column if row_N is None else row_N.mul_(self._spec.size(mode)).add_(column)
        return rows if row_N is None else rows.index_select(0, row_N)


def _gatherable(spec: NetworkSpec, k: int, core: Tensor) -> Tensor:
    """(R, *bonds) the rows of a core that has modes, else the core."""
    form = row_form(spec, k)
    rows = core if not form.modes else form.rows_of(core).reshape(form.num_rows, *form.bond_shape)
    return rows.contiguous()
