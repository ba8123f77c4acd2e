"""What the layers share: how a weight's dims are cut into modes, its network, its start, and the checks of inputs."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from distsam.errors import ArgumentError
from distsam.tensornet.arguments import checked_list
from distsam.tensornet.contraction import Indices
from distsam.tensornet.factors import checked_factors, factorise, num_factors, padded_size
from distsam.tensornet.network import TensorNetwork
from distsam.tensornet.ranks import Rank, Shape, weight_spec

# What a user calls a size, and the size.
Size = tuple[str, int]

# A Tucker core grows with the power of the number of modes, so that it takes the fewest.
_TUCKER_FACTORS = 2


class NetworkArguments(TypedDict, total=False):
    """What every layer takes beside `format` and `rank`.

    Args:
        out_shape, in_shape: factors of the two sizes of the weight; as equal as they divide when None.
        pad: fill a size up to one that has good factors (1009 is a prime; 1,024 is 16 x 8 x 8); what is beyond the size
            is never used.
        generator: of the start, as for TensorNetwork.
        max_peak_bytes: as of TensorNetwork.
    """

    out_shape: Sequence[int] | None
    in_shape: Sequence[int] | None
    pad: bool
    generator: torch.Generator | None
    max_peak_bytes: int | None


@dataclass(frozen=True)
class WeightNetwork:
    """The network of a weight, and which of its modes are of the output, which of the input.

    Args:
        network: with the modes of the output first.
        out_shape, in_shape: their sizes, the padded ones.
    """

    network: TensorNetwork
    out_shape: Shape
    in_shape: Shape

    @property
    def out_modes(self) -> Indices:
        """The modes of the output."""
        return self.network.spec.modes[: len(self.out_shape)]

    @property
    def in_modes(self) -> Indices:
        """The modes of the input."""
        return self.network.spec.modes[len(self.out_shape) :]


def shapes_of(out: Size, inputs: Size, format: str, arguments: NetworkArguments) -> tuple[Shape, Shape]:
    """Both sizes of a matrix cut into modes, into equally many where none are given."""
    given = [shape for key in ("out_shape", "in_shape") if (shape := arguments.get(key)) is not None]
    usual = _TUCKER_FACTORS if format == "tucker" else max(num_factors(out[1]), num_factors(inputs[1]))
    num = len(checked_list(given[0], "shape")) if given else usual
    is_padded = bool(arguments.get("pad"))
    return (
        _factors(out, arguments.get("out_shape"), "out_shape", num, is_padded),
        _factors(inputs, arguments.get("in_shape"), "in_shape", num, is_padded),
    )


def _factors(size: Size, given: Sequence[int] | None, argument: str, num: int, is_padded: bool) -> Shape:
    name, number = size
    if given is not None:
        return checked_factors(tuple(checked_list(given, argument)), number, argument, is_padded=is_padded)
    return factorise(padded_size(number, num) if is_padded else number, num, name)


def weight_network(
    shapes: tuple[Shape, Shape],
    format: str,
    rank: Rank,
    std: float,
    arguments: NetworkArguments,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> WeightNetwork:
    """The network of a weight of these modes, its entries drawn with this root mean square, its core norms equal."""
    spec = weight_spec(format, *shapes, rank)
    network = TensorNetwork(
        spec,
        std=std,
        generator=arguments.get("generator"),
        dtype=dtype,
        device=device,
        max_peak_bytes=arguments.get("max_peak_bytes"),
    )
    return WeightNetwork(network, *shapes)


def uniform_std(fan_in: int) -> float:
    """Standard deviation with which torch starts the weights of linear and convolutional layers: U(-a, a), a =
    1 / sqrt(fan_in)."""
    return 1 / sqrt(3 * max(fan_in, 1))


@torch.no_grad()
def draw_bias_(bias: Tensor, fan_in: int, generator: torch.Generator | None = None) -> None:
    """Draws it as torch does, in place: uniform between -1 / sqrt(fan_in) and 1 / sqrt(fan_in)."""
    if bias.is_meta:
        return
    bound = 1 / sqrt(max(fan_in, 1))
    bias.copy_(torch.empty(bias.shape, device="cpu").uniform_(-bound, bound, generator=generator))


def checked_input(value: Any, size: int, dim: int, weight: Tensor, layer: str) -> Tensor:
    """A tensor of the layer's dtype with `size` along `dim`.

    Raises:
        ArgumentError: it is none; its dtype is taken as it comes under autocast, which converts it.
    """
    if not isinstance(value, Tensor):
        raise ArgumentError("input", f"is a {type(value).__name__}; {layer} takes a tensor")
    if value.dim() < abs(dim) or value.shape[dim] != size:
        raise ArgumentError("input", f"has shape {tuple(value.shape)}; {layer} takes {size} along dim {dim}")
    if value.dtype != weight.dtype and not torch.is_autocast_enabled(value.device.type):
        problem = f"is of {value.dtype}; this {layer} is of {weight.dtype}: convert one, or use torch.autocast"
        raise ArgumentError("input", problem)
    return value


def padded(value: Tensor, size: int) -> Tensor:
    """`value` with zeros behind its last dim, up to `size`."""
    missing = size - value.shape[-1]
    return nn.functional.pad(value, (0, missing)) if missing else value
