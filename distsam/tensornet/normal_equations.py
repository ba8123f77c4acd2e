"""The least-squares problem of one core, all others fixed: T's entries are linear in each core.

The entry at position i is <row of the core at i's positions in the core's own modes, environment of i>: the environment
is what all other cores give there, over the bonds of the core. So a core is as many independent least-squares problems
as it has rows (combinations of positions in its own modes), each with the product of its bonds as unknowns.
"""

# B entries, C chunks of entries of one row, L entries of a chunk, R rows of a core, P unknowns of a row.

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import prod

import numpy as np
import torch
from torch import Tensor

from distsam.tensornet.contraction import ContractionPlan, Indices, contract, plan_contraction
from distsam.tensornet.planner import BATCH
from distsam.tensornet.spec import NetworkSpec

# Bytes of the float64 sums that are made, and sent, at a time.
SUMS_BYTES = 2**26
# Numbers of the environments that are made at a time: still in a core's cache when they are multiplied.
PIECE_ELEMENTS = 2**17
# A chunk costs about as much as so many entries more: its matrix is added to that of its row.
_CHUNK_ENTRIES = 8


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


@dataclass(frozen=True, eq=False)
class Piece:
    """Entries that are gathered and multiplied together.

    Args:
        entries_CL: (C, L) int64 which entry; of a chunk that is shorter, any.
        keeps_CL1: (C, L, 1) float64, 0 where a chunk is shorter than L, else 1; None where none is.
        rows_C: (C,) int64 the row of each chunk, counted from the block's first.
    """

    entries_CL: Tensor
    keeps_CL1: Tensor | None
    rows_C: Tensor


@dataclass(frozen=True, eq=False)
class Block:
    """Rows of a core whose sums fit in SUMS_BYTES: from `first` up to `last`; the same on every rank."""

    first: int
    last: int
    pieces: tuple[Piece, ...]


def sort_into_blocks(spec: NetworkSpec, k: int, columns: np.ndarray, device: torch.device) -> list[Block]:
    """The entries by the row of core k that they touch: one gather, in any order, and matrix products do the rest.

    Args:
        spec: of the network.
        k: which core.
        columns: (order, B) int64, the positions of all entries, mode by mode; B may be 0.
        device: where the cores are.

    Returns:
        Blocks of rows, which cover all rows.
    """
    form = row_form(spec, k)
    own = tuple(columns[spec.place_of_mode[mode]] for mode in form.modes)
    row_of = np.ravel_multi_index(own, form.row_shape) if own else np.zeros(columns.shape[1], dtype=np.int64)
    order = np.argsort(row_of, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(row_of, minlength=form.num_rows))])
    step = max(1, SUMS_BYTES // (8 * form.num_unknowns * (form.num_unknowns + 1)))
    bounds = [*range(0, form.num_rows, step), form.num_rows]
    return [
        Block(first, last, tuple(_pieces(order, starts[first : last + 1], form.num_unknowns, device)))
        for first, last in pairwise(bounds)
    ]


def _pieces(order: np.ndarray, starts: np.ndarray, num_unknowns: int, device: torch.device) -> Iterator[Piece]:
    counts = np.diff(starts)
    most = max(1, PIECE_ELEMENTS // num_unknowns)
    length = _chunk_length(counts, most)
    num_chunks = -(-counts // length)
    row_C = np.repeat(np.arange(len(counts)), num_chunks)
    nth_C = np.arange(len(row_C)) - np.repeat(np.cumsum(num_chunks) - num_chunks, num_chunks)
    first_C = starts[:-1][row_C] + nth_C * length
    per_piece = max(1, most // length)
    for begin in range(0, len(row_C), per_piece):
        taken = slice(begin, begin + per_piece)
        places = first_C[taken, None] + np.arange(length)
        ends = starts[1:][row_C[taken], None]
        entries = torch.from_numpy(order[np.minimum(places, ends - 1)]).to(device)
        keeps = torch.from_numpy((places < ends).astype(np.float64)).unsqueeze(2).to(device)
        yield Piece(entries, None if (places < ends).all() else keeps, torch.from_numpy(row_C[taken]).to(device))


def _chunk_length(counts: np.ndarray, most: int) -> int:
    """The power of 2 that wastes the least: long chunks are filled up, of short ones there are many."""
    lengths = [2**n for n in range(2, most.bit_length())] or [1]
    return min(lengths, key=lambda length: int((-(-counts // length)).sum()) * (length + _CHUNK_ENTRIES))


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
            table = contract(self._others.table, taken).reshape(-1, self._num_unknowns)
            self._rows = [table.contiguous()]
        else:
            self._rows = [_gatherable(spec, j, core) for j, core in zip(self._others.cores, taken, strict=True)]

    def at(self, entries: Tensor) -> Tensor:
        """(N, P), of (N,) int64 entries."""
        others = self._others
        if others.join is None and others.table is None:  # the network is this core alone
            return self._like.new_ones(len(entries), 1)
        if others.join is None:
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


def add_normal_equations(sums_RPQ: Tensor, block: Block, environments: Environments, targets: Tensor) -> None:
    """Add to the sums of a block's rows, for each entry with environment e and target y, e e^T and, behind it, e y.

    Args:
        sums_RPQ: (R, P, P + 1) float64.
        block: of `sort_into_blocks`.
        environments: of the core, of float64 cores.
        targets: (B,) float64.
    """
    num_unknowns = sums_RPQ.shape[1]
    for piece in block.pieces:
        chosen = piece.entries_CL.reshape(-1)
        env_CLP = environments.at(chosen).reshape(*piece.entries_CL.shape, num_unknowns)
        if piece.keeps_CL1 is not None:
            env_CLP = env_CLP * piece.keeps_CL1
        y_CL1 = targets.index_select(0, chosen).reshape(*piece.entries_CL.shape, 1)
        # Both products in one: a matrix times a vector takes about as long.
        env_CPL, with_y_CLQ = env_CLP.transpose(1, 2), torch.cat([env_CLP, y_CL1], 2)
        sums_RPQ.index_add_(0, piece.rows_C, env_CPL @ with_y_CLQ)
