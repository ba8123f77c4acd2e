"""Look-up tables whose rows are computed from a tensor network."""

from math import prod
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional

from distsam.errors import ArgumentError
from distsam.tensornet.arguments import checked_size
from distsam.tensornet.layers.weight import NetworkArguments, shapes_of, weight_network
from distsam.tensornet.products import plan_rows
from distsam.tensornet.ranks import Rank, Shape

# Where more than this share of the numbers asked for are different, to take each of them once saves less than the
# look-up of what was computed takes.
REPEATED = 0.9


class TensorizedEmbedding(nn.Module):
    """A table of num_embeddings rows as a tensor network: `torch.nn.Embedding` with fewer parameters.

    Only the rows that are asked for are computed. Rows start with root mean square 1, as torch's do.

    Args:
        num_embeddings, embedding_dim: as of torch.nn.Embedding.
        padding_idx: this row is all zeros, and what it is asked for leaves no gradient.
        device, dtype: of the parameters.
        format, rank, arguments: as of TensorizedLinear; `out_shape` cuts num_embeddings, `in_shape` embedding_dim.

    Attributes:
        network: the TensorNetwork of the weight; its parameters are "network.cores.0", ...

    Raises:
        ArgumentError: a size, shape, format, rank or padding_idx that cannot be.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        format: str = "tt",
        rank: Rank = 8,
        **arguments: Unpack[NetworkArguments],
    ) -> None:
        super().__init__()
        self.num_embeddings = checked_size(num_embeddings, "num_embeddings")
        self.embedding_dim = checked_size(embedding_dim, "embedding_dim")
        self.padding_idx = _checked_padding(padding_idx, self.num_embeddings)
        sizes = ("num_embeddings", self.num_embeddings), ("embedding_dim", self.embedding_dim)
        shapes = shapes_of(*sizes, format, arguments)
        made = weight_network(shapes, format, rank, 1.0, arguments, device, dtype)
        self.network, self.out_shape, self.in_shape = made.network, made.out_shape, made.in_shape
        self._plans = plan_rows(self.network.spec, made.out_modes)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws the start again; for a layer built on the meta device, after `to_empty`."""
        self.network.draw(generator=generator)

    def forward(self, input: Tensor) -> Tensor:
        """The rows at these numbers.

        Args:
            input: integers of any shape, each from 0 to num_embeddings - 1.

        Returns:
            (*input.shape, embedding_dim), of the dtype of the layer.

        Raises:
            ArgumentError: `input` holds no integers.
            IndexError: one is outside (on an accelerator torch's own assertion).
        """
        ids = _checked_ids(input, self.num_embeddings)
        rows = self._rows_once(ids.reshape(-1))
        if self.padding_idx is not None:
            rows = rows.masked_fill((ids.reshape(-1) == self.padding_idx).unsqueeze(1), 0)
        return rows.reshape(*ids.shape, self.embedding_dim)

    def _rows_once(self, ids_B: Tensor) -> Tensor:
        """Rows, each computed once however often it is asked for, where nobody has to wait for their number."""
        if ids_B.device.type != "cpu" or torch.compiler.is_compiling():
            return self._rows(ids_B)
        unique, places_B = torch.unique(ids_B, return_inverse=True)
        if len(unique) > REPEATED * len(ids_B):
            return self._rows(ids_B)
        return self._rows(unique).index_select(0, places_B)

    def _rows(self, ids_B: Tensor) -> Tensor:
        positions = _digits(ids_B, self.out_shape)
        return self.network.rows(positions, self._plans).reshape(len(ids_B), prod(self.in_shape))[
            :, : self.embedding_dim
        ]

    def multiply_adds(self, num_rows: int) -> int:
        """Multiplications of a forward pass for one of `num_rows` rows."""
        return round(self._plans.for_batch(num_rows).multiply_adds / num_rows)

    @property
    def weight(self) -> Tensor:
        """The whole table, (num_embeddings, embedding_dim), with zeros in the row of padding_idx; differentiable."""
        table = self.network.dense().reshape(prod(self.out_shape), prod(self.in_shape))
        table = table[: self.num_embeddings, : self.embedding_dim]
        if self.padding_idx is None:
            return table
        is_padding = torch.arange(self.num_embeddings, device=table.device) == self.padding_idx
        return table.masked_fill(is_padding.unsqueeze(1), 0)

    def extra_repr(self) -> str:
        """What `print` shows of it."""
        sizes = f"{self.num_embeddings}, {self.embedding_dim}, padding_idx={self.padding_idx}"
        return f"{sizes}, out_shape={self.out_shape}, in_shape={self.in_shape}"


class TensorizedEmbeddingBag(TensorizedEmbedding):
    """Sums, means or maxima over bags of rows: `torch.nn.EmbeddingBag` with fewer parameters.

    A row that stands in several bags is computed once.

    Args:
        num_embeddings, embedding_dim: as of torch.nn.EmbeddingBag.
        mode: "sum", "mean" or "max".
        include_last_offset: as of torch.nn.EmbeddingBag.
        padding_idx: this row counts in no bag.
        device, dtype, format, rank, arguments: as of TensorizedEmbedding.

    Raises:
        ArgumentError: as TensorizedEmbedding, or another mode.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        mode: str = "mean",
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        format: str = "tt",
        rank: Rank = 8,
        **arguments: Unpack[NetworkArguments],
    ) -> None:
        if mode not in ("sum", "mean", "max"):
            raise ArgumentError("mode", f"is {mode!r}; use sum, mean or max")
        super().__init__(
            num_embeddings, embedding_dim, padding_idx, device, dtype, format=format, rank=rank, **arguments
        )
        self.mode, self.include_last_offset = mode, include_last_offset

    def forward(self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:
        """One row for each bag.

        Args:
            input: (bags, length) integers, or (N,) with offsets.
            offsets: (bags,) where each bag begins in a 1-D input.
            per_sample_weights: of the input's shape, with mode "sum".

        Returns:
            (bags, embedding_dim).

        Raises:
            ArgumentError: `input` holds no integers.
            IndexError: one is outside (on an accelerator torch's own assertion).
        """
        ids = _checked_ids(input, self.num_embeddings)
        unique, places = torch.unique(ids, return_inverse=True)
        padding = None
        if self.padding_idx is not None:
            # The padding row is added, so that it has a place even where the input has none.
            unique = torch.cat([unique, unique.new_full((1,), self.padding_idx)])
            places = torch.where(ids == self.padding_idx, len(unique) - 1, places)
            padding = len(unique) - 1
        return functional.embedding_bag(
            places,
            self._rows(unique),
            offsets,
            mode=self.mode,
            per_sample_weights=per_sample_weights,
            include_last_offset=self.include_last_offset,
            padding_idx=padding,
        )


def _checked_padding(padding_idx: int | None, num: int) -> int | None:
    if padding_idx is None:
        return None
    if isinstance(padding_idx, bool) or not isinstance(padding_idx, int) or not -num <= padding_idx < num:
        raise ArgumentError("padding_idx", f"is {padding_idx!r}; it must be an integer from {-num} to {num - 1}")
    return padding_idx % num


def _checked_ids(input: Tensor, num: int) -> Tensor:
    if not isinstance(input, Tensor) or input.is_floating_point() or input.dtype == torch.bool:
        given = input.dtype if isinstance(input, Tensor) else type(input).__name__
        raise ArgumentError("input", f"is of {given}; it must be a tensor of integers")
    ids = input.long()
    # A number beyond the table can have a place in the padded network: it would pass in silence.
    is_inside = ((ids >= 0) & (ids < num)).all()
    if ids.device.type == "cpu" and not torch.compiler.is_compiling():
        if not is_inside:
            raise IndexError(f"input has {int(ids.min())} to {int(ids.max())}; the table has rows 0 to {num - 1}")
    else:
        torch._assert_async(is_inside)
    return ids


def _digits(ids_B: Tensor, shape: Shape) -> Tensor:
    """The position of each number in modes of this shape, (B, len(shape)), the last mode running fastest."""
    digits = []
    for size in reversed(shape):
        digits.append(ids_B % size)
        ids_B = ids_B // size
    return torch.stack(digits[::-1], 1)
