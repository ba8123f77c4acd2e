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


def sort_into_blocks(spec: NetworkSpec, k: int, indices: np.ndarray, device: torch.device) -> list[Block]:
    """The entries by the row of core k that they touch: one gather, in any order, and matrix products do the rest.

    Args:
        spec: of the network.
        k: which core.
        indices: (B, order) int64; B may be 0.
        device: where the cores are.

    Returns:
        Blocks of rows, which cover all rows.
    """
    form = row_form(spec, k)
    columns = tuple(indices[:, spec.place_of_mode[mode]] for mode in form.modes)
    row_of = np.ravel_multi_index(columns, form.row_shape) if columns else np.zeros(len(indices), dtype=np.int64)
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
    """(B, P) what all cores but one give at each of a batch of entries, over the bonds of that one.

    Args:
        spec: of the network.
        k: the core that is left out.
        cores: K tensors; core k is not looked at.
        num_entries: of how many entries altogether the environments will be asked for.
    """

    def __init__(self, spec: NetworkSpec, k: int, cores: Sequence[Tensor], num_entries: int) -> None:
        self._spec, self._num_unknowns = spec, row_form(spec, k).num_unknowns
        self._like = cores[k]
        length = max(1, min(num_entries, PIECE_ELEMENTS // self._num_unknowns))
        self._others = _others(spec, k, num_entries, length)
        taken = [cores[j] for j in self._others.cores]
        if self._others.table is not None:
            table = contract(self._others.table, taken)
            self._rows = [table.reshape(-1, self._num_unknowns)]
        else:
            forms = [row_form(spec, j) for j in self._others.cores]
            self._rows = [
                f.rows_of(core).unflatten(1, f.bond_shape or (1,)) for f, core in zip(forms, taken, strict=True)
            ]

    def at(self, indices: Tensor) -> Tensor:
        """(B, P), of (B, order) positions."""
        others = self._others
        if others.table is not None:
            rows = self._row_of(others.modes, indices)
            return self._rows[0].expand(len(indices), -1) if rows is None else self._rows[0].index_select(0, rows)
        if others.join is None:  # the network is this core alone
            return self._like.new_ones(len(indices), 1)
        found = []
        for j, rows in zip(others.cores, self._rows, strict=True):
            form = row_form(self._spec, j)
            row_of = self._row_of(form.modes, indices)
            taken = rows.squeeze(0) if row_of is None else rows.index_select(0, row_of)
            found.append(taken if form.bonds else taken.squeeze(-1))
        return contract(others.join, found).reshape(len(indices), self._num_unknowns)

    def _row_of(self, modes: Indices, indices: Tensor) -> Tensor | None:
        found: Tensor | None = None
        for mode in modes:
            column = indices[:, self._spec.place_of_mode[mode]]
            found = column if found is None else found * self._spec.size(mode) + column
        return found


def add_normal_equations(
    sums_RPQ: Tensor, block: Block, environments: Environments, indices: Tensor, targets: Tensor
) -> None:
    """Add to the sums of a block's rows, for each entry with environment e and target y, e e^T and, behind it, e y.

    Args:
        sums_RPQ: (R, P, P + 1) float64.
        block: of `sort_into_blocks`.
        environments: of the core, of float64 cores.
        indices: (B, order) int64.
        targets: (B,) float64.
    """
    num_unknowns = sums_RPQ.shape[1]
    for piece in block.pieces:
        chosen = piece.entries_CL.reshape(-1)
        shape = (*piece.entries_CL.shape, num_unknowns)
        env_CLP = environments.at(indices.index_select(0, chosen)).reshape(shape)
        if piece.keeps_CL1 is not None:
            env_CLP = env_CLP * piece.keeps_CL1
        env_CPL = env_CLP.transpose(1, 2)
        y_CL1 = targets.index_select(0, chosen).reshape(*piece.entries_CL.shape, 1)
        sums_RPQ[:, :, :num_unknowns].index_add_(0, piece.rows_C, env_CPL @ env_CLP)
        sums_RPQ[:, :, num_unknowns:].index_add_(0, piece.rows_C, env_CPL @ y_CL1)
