"""A linear layer whose matrix is a tensor network."""

from math import prod
from typing import Unpack

import torch
from torch import Tensor, nn

from distsam.tensornet.arguments import checked_size
from distsam.tensornet.layers.weight import (
    NetworkArguments,
    checked_input,
    draw_bias_,
    padded,
    shapes_of,
    uniform_std,
    weight_network,
)
from distsam.tensornet.products import plan_multiply
from distsam.tensornet.ranks import Rank


class TensorizedLinear(nn.Module):
    """y = x W^T + b with W as a tensor network: `torch.nn.Linear` with fewer parameters.

    W is cut into modes, those of the output first; whether its cores meet the data one by one or are merged before
    follows from the batch, and changes the result by rounding only. W starts with the root mean square of torch's
    start, so that outputs have the same variance, and with equal core norms (norm deviation Q = 0).

    Args:
        in_features, out_features, bias, device, dtype: as of torch.nn.Linear.
        format: "cp", "tucker", "tt" (a train along all modes), "tt_matrix" (each core carries a mode of both sides)
            or "tr".
        rank: one number for every bond, a list, "ratio:4" (a quarter of the dense parameters) or "full"; above what
            the weight can use it is clamped, with a warning.
        arguments: `out_shape`, `in_shape`, `pad`, `generator`: see NetworkArguments.

    Attributes:
        network: the TensorNetwork of the weight; its parameters are "network.cores.0", ...
        weight: W, computed from the cores at each look; nothing can be assigned to it.
        bias: (out_features,) or None.

    Raises:
        ArgumentError: a size, shape, format or rank that cannot be.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        format: str = "tt",
        rank: Rank = 8,
        **arguments: Unpack[NetworkArguments],
    ) -> None:
        super().__init__()
        self.in_features = checked_size(in_features, "in_features")
        self.out_features = checked_size(out_features, "out_features")
        sizes = ("out_features", self.out_features), ("in_features", self.in_features)
        shapes = shapes_of(*sizes, format, arguments)
        std = uniform_std(self.in_features)
        made = weight_network(shapes, format, rank, std, arguments, device, dtype)
        self.network, self.out_shape, self.in_shape = made.network, made.out_shape, made.in_shape
        self._plans = plan_multiply(self.network.spec, made.in_modes)
        self.bias = nn.Parameter(torch.empty(self.out_features, device=device, dtype=dtype)) if bias else None
        self._draw_bias(arguments.get("generator"))

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws the start again; for a layer built on the meta device, after `to_empty`."""
        self.network.draw(std=uniform_std(self.in_features), generator=generator)
        self._draw_bias(generator)

    def _draw_bias(self, generator: torch.Generator | None) -> None:
        if self.bias is not None:
            draw_bias_(self.bias, self.in_features, generator)

    def forward(self, input: Tensor) -> Tensor:
        """y = x W^T + b.

        Args:
            input: (..., in_features), of the dtype of the layer, or any floating one under autocast.

        Returns:
            (..., out_features).

        Raises:
            ArgumentError: another size or dtype.
        """
        x = checked_input(input, self.in_features, -1, self.network.cores[0], "layer")
        vectors = padded(x, prod(self.in_shape)).reshape(-1, *self.in_shape)
        y = self.network.multiply(vectors, self._plans).reshape(*x.shape[:-1], prod(self.out_shape))[
            ..., : self.out_features
        ]
        # Under autocast y is of lower precision, as torch's layer gives it.
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def multiply_adds(self, num_rows: int) -> int:
        """Multiplications of a forward pass for one of `num_rows` rows."""
        return round(self._plans.for_batch(num_rows).multiply_adds / num_rows)

    @property
    def weight(self) -> Tensor:
        """W, (out_features, in_features); differentiable in the cores."""
        matrix = self.network.dense().reshape(prod(self.out_shape), prod(self.in_shape))
        return matrix[: self.out_features, : self.in_features]

    def extra_repr(self) -> str:
        """What `print` shows of it."""
        sizes = f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        return f"{sizes}, out_shape={self.out_shape}, in_shape={self.in_shape}"
