"""The least-squares problem of one core, all others fixed, summed over the entries.

A core is as many independent problems as it has rows (combinations of positions in its own modes), each with the
product of its bonds as unknowns: see `environments`.
"""

# B entries, C chunks of entries of one row, L entries of a chunk, K combinations of positions in other cores' modes,
# R rows of a core, P unknowns of a row.

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from distsam.tensornet.contraction import Indices
from distsam.tensornet.environments import PIECE_ELEMENTS, Environments, row_form, table_modes
from distsam.tensornet.spec import NetworkSpec

# Bytes of the float64 sums that are made, and sent, at a time.
SUMS_BYTES = 2**26
# A chunk costs about as much as so many entries more: its matrix is added to that of its row.
_CHUNK_ENTRIES = 8
# Where at least every fourth entry is known, counting them in a table of all is faster than gathering those known: one
# large matrix product (COVID-19, 30 % known, CP of bond 3: a sweep takes 1.3 in place of 2.2 ms). Up to so many numbers
# of the squares that it multiplies.
_CELLS_PER_ENTRY = 4
_MOST_SQUARES = 2**22


class Known(Protocol):
    """The entries of some rows of a core, in a form that sums quickly."""

    def add_to(self, sums_RPQ: Tensor, environments: Environments) -> None:
        """Add for each entry with environment e and target y, to the sums of its row, e e^T and, behind it, e y.

        Args:
            sums_RPQ: (R, P, P + 1) float64.
            environments: of the core, of float64 cores.
        """
        ...


@dataclass(frozen=True, eq=False)
class Block:
    """Rows of a core whose sums fit in SUMS_BYTES, from `first` up to `last`, the same on every rank; its entries."""

    first: int
    last: int
    known: Known


@dataclass(frozen=True, eq=False)
class Piece:
    """Entries that are gathered and multiplied together.

    Args:
        entries_CL: (C, L) int64 which entry; of a chunk that is shorter, any.
        keeps_CL1: (C, L, 1) bool, False where a chunk is shorter than L; None where none is.
        rows_C: (C,) int64 the row of each chunk, counted from the block's first.
    """

    entries_CL: Tensor
    keeps_CL1: Tensor | None
    rows_C: Tensor


@dataclass(frozen=True, eq=False)
class SortedEntries:
    """Entries sorted by row and cut into chunks of one length, so that all is gathers and batched matrix products."""

    pieces: tuple[Piece, ...]
    targets_B: Tensor

    def add_to(self, sums_RPQ: Tensor, environments: Environments) -> None:
        """See `Known`."""
        for piece in self.pieces:
            shape, chosen = piece.entries_CL.shape, piece.entries_CL.reshape(-1)
            env_CLP = environments.at(chosen).reshape(*shape, sums_RPQ.shape[1])
            if piece.keeps_CL1 is not None:
                env_CLP = env_CLP * piece.keeps_CL1
            y_CL1 = self.targets_B.index_select(0, chosen).reshape(*shape, 1)
            # Both products in one: a matrix times a vector takes about as long.
            env_CPL, with_y_CLQ = env_CLP.transpose(1, 2), torch.cat([env_CLP, y_CL1], 2)
            sums_RPQ.index_add_(0, piece.rows_C, env_CPL @ with_y_CLQ)


@dataclass(frozen=True, eq=False)
class CountedEntries:
    """How often each pair of a row and a combination is known, and the sum of its targets."""

    counts_RK: Tensor
    targets_RK: Tensor

    def add_to(self, sums_RPQ: Tensor, environments: Environments) -> None:
        """See `Known`."""
        table_KP = environments.table
        assert table_KP is not None
        # Combinations last: with bonds last, of which there are few, it takes three times as long.
        table_PK = table_KP.T.contiguous()
        squares_PPK = table_PK.unsqueeze(1) * table_PK
        count = len(table_PK)
        sums_RPQ[:, :, :count] += (squares_PPK.reshape(count * count, -1) @ self.counts_RK.T).T.unflatten(
            1, (count, -1)
        )
        sums_RPQ[:, :, count] += (table_PK @ self.targets_RK.T).T


def sort_into_blocks(
    spec: NetworkSpec, k: int, columns: np.ndarray, targets: np.ndarray, device: torch.device
) -> list[Block]:
    """The entries by the row of core k that they touch.

    Args:
        spec: of the network.
        k: which core.
        columns: (order, B) int64, the positions of all entries, mode by mode; B may be 0.
        targets: (B,) float64.
        device: where the cores are.

    Returns:
        Blocks of rows, which cover all rows.
    """
    form = row_form(spec, k)
    step = max(1, SUMS_BYTES // (8 * form.num_unknowns * (form.num_unknowns + 1)))
    bounds = [*range(0, form.num_rows, step), form.num_rows]
    row_of = _combined(spec, form.modes, columns)
    others = table_modes(spec, k, len(targets))
    if others is not None:
        num_combined = prod(map(spec.size, others))
        is_small = num_combined * form.num_unknowns**2 <= _MOST_SQUARES
        if is_small and form.num_rows * num_combined <= _CELLS_PER_ENTRY * len(targets):
            cell_of, shape = row_of * num_combined + _combined(spec, others, columns), (form.num_rows, num_combined)
            counted = [np.bincount(cell_of, weights, prod(shape)).reshape(shape) for weights in (None, targets)]
            counts, sums = (torch.from_numpy(c.astype(np.float64)).to(device) for c in counted)
            return [Block(a, b, CountedEntries(counts[a:b], sums[a:b])) for a, b in pairwise(bounds)]
    order, targets_B = np.argsort(row_of, kind="stable"), torch.from_numpy(targets).to(device)
    starts = np.concatenate([[0], np.cumsum(np.bincount(row_of, minlength=form.num_rows))])
    return [
        Block(a, b, SortedEntries(tuple(_pieces(order, starts[a : b + 1], form.num_unknowns, device)), targets_B))
        for a, b in pairwise(bounds)
    ]


def _combined(spec: NetworkSpec, modes: Indices, columns: np.ndarray) -> np.ndarray:
    """(B,) the number of each entry's combination of positions in `modes`."""
    own = tuple(columns[spec.place_of_mode[mode]] for mode in modes)
    if not own:
        return np.zeros(columns.shape[1], dtype=np.int64)
    return np.asarray(np.ravel_multi_index(own, tuple(map(spec.size, modes))))


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
        keeps = torch.from_numpy(places < ends).unsqueeze(2).to(device)
        yield Piece(entries, None if (places < ends).all() else keeps, torch.from_numpy(row_C[taken]).to(device))


def _chunk_length(counts: np.ndarray, most: int) -> int:
    """The power of 2 that wastes the least: long chunks are filled up, of short ones there are many."""
    lengths = [2**n for n in range(2, most.bit_length())] or [1]
    return min(lengths, key=lambda length: int((-(-counts // length)).sum()) * (length + _CHUNK_ENTRIES))
