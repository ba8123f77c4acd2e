"""Convolutions whose kernels are tensor networks."""

from math import prod
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional

from distsam.errors import ArgumentError
from distsam.tensornet.arguments import checked_list, checked_size, is_list
from distsam.tensornet.contraction import plan_contraction
from distsam.tensornet.layers.weight import (
    NetworkArguments,
    checked_input,
    draw_bias_,
    shapes_of,
    uniform_std,
    weight_network,
)
from distsam.tensornet.ranks import Rank

_PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
_CONVOLVE: dict[int, Any] = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
# These cut channels; CP and Tucker take them whole, as is usual for convolutions.
_CUT_CHANNELS = ("tt", "tr")


class TensorizedConv(nn.Module):
    """A convolution over `num_dims` dims whose kernel is a tensor network; use TensorizedConv1d, 2d or 3d.

    The modes are those of the output channels, of the input channels, and each dim of the kernel. A forward pass
    merges the cores into the kernel once, whatever the batch, and hands it to torch's convolution.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype: as
            of torch.nn.Conv1d, 2d, 3d.
        format: "cp" or "tucker" (channels whole), "tt" or "tr" (channels cut into factors).
        rank, arguments: as of TensorizedLinear; `out_shape` cuts out_channels, `in_shape` the input channels of a
            group.

    Attributes:
        network: the TensorNetwork of the weight; its parameters are "network.cores.0", ...
        bias: (out_channels,) or None.

    Raises:
        ArgumentError: a size, shape, format, rank or padding that cannot be.
    """

    num_dims: int
    bias: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] | str = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        format: str = "cp",
        rank: Rank = 8,
        **arguments: Unpack[NetworkArguments],
    ) -> None:
        super().__init__()
        self.in_channels = checked_size(in_channels, "in_channels")
        self.out_channels = checked_size(out_channels, "out_channels")
        self.groups = checked_size(groups, "groups")
        for name, channels in (("in_channels", self.in_channels), ("out_channels", self.out_channels)):
            if channels % self.groups:
                raise ArgumentError(name, f"is {channels}; {self.groups} groups must divide it")
        self.kernel_size = self._per_dim(kernel_size, "kernel_size", 1)
        self.stride, self.dilation = self._per_dim(stride, "stride", 1), self._per_dim(dilation, "dilation", 1)
        self.padding_mode = padding_mode
        self.padding = self._checked_padding(padding)
        if format == "tt_matrix":
            raise ArgumentError("format", "tt_matrix has no place for the kernel's dims; use cp, tucker, tt or tr")
        in_group = self.in_channels // self.groups
        self.fan_in = in_group * prod(self.kernel_size)
        whole: NetworkArguments = {"out_shape": (self.out_channels,), "in_shape": (in_group,)}
        cut = arguments if format in _CUT_CHANNELS else {**whole, **arguments}
        sizes = ("out_channels", self.out_channels), ("in_channels", in_group)
        out_shape, in_shape = shapes_of(*sizes, format, cut)
        shapes = (out_shape, (*in_shape, *self.kernel_size))
        made = weight_network(shapes, format, rank, uniform_std(self.fan_in), arguments, device, dtype)
        self.network, self.out_shape, self.in_shape = made.network, out_shape, in_shape
        self.bias = nn.Parameter(torch.empty(self.out_channels, device=device, dtype=dtype)) if bias else None
        self._draw_bias(arguments.get("generator"))

    def _per_dim(self, value: int | tuple[int, ...], name: str, least: int) -> tuple[int, ...]:
        values: list[Any] = checked_list(value, name) if is_list(value) else [value] * self.num_dims
        is_right = all(isinstance(v, int) and not isinstance(v, bool) and v >= least for v in values)
        if len(values) != self.num_dims or not is_right:
            problem = f"is {value!r}; it must be an integer of at least {least}, or {self.num_dims} of them"
            raise ArgumentError(name, problem)
        return tuple(values)

    def _checked_padding(self, padding: int | tuple[int, ...] | str) -> tuple[int, ...] | str:
        if self.padding_mode not in _PADDING_MODES:
            raise ArgumentError("padding_mode", f"is {self.padding_mode!r}; use one of {', '.join(_PADDING_MODES)}")
        if not isinstance(padding, str):
            return self._per_dim(padding, "padding", 0)
        if padding not in ("same", "valid"):
            raise ArgumentError("padding", f"is {padding!r}; use a number, a list, same or valid")
        if padding == "same" and any(stride != 1 for stride in self.stride):
            raise ArgumentError("padding", f"is same, which needs a stride of 1; this one is {self.stride}")
        return padding

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws the start again; for a layer built on the meta device, after `to_empty`."""
        self.network.draw(std=uniform_std(self.fan_in), generator=generator)
        self._draw_bias(generator)

    def _draw_bias(self, generator: torch.Generator | None) -> None:
        if self.bias is not None:
            draw_bias_(self.bias, self.fan_in, generator)

    def forward(self, input: Tensor) -> Tensor:
        """The convolution of (batch, in_channels, *size), or without a batch, as torch.nn.Conv1d, 2d, 3d.

        Raises:
            ArgumentError: another number of dims or channels, or another dtype.
        """
        x = checked_input(input, self.in_channels, -1 - self.num_dims, self.network.cores[0], "layer")
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            x, padding = functional.pad(x, self._around(), mode=self.padding_mode), 0
        convolve = _CONVOLVE[self.num_dims]
        return convolve(x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)

    def _around(self) -> list[int]:
        """How much to pad before and behind each dim, the last dim first, as torch's pad takes it."""
        around: list[int] = []
        for dim in reversed(range(self.num_dims)):
            if isinstance(self.padding, str):
                total = self.dilation[dim] * (self.kernel_size[dim] - 1) if self.padding == "same" else 0
                around += [total // 2, total - total // 2]
            else:
                around += [self.padding[dim]] * 2
        return around

    def multiply_adds(self, num_rows: int) -> int:
        """Multiplications of a forward pass for one of `num_rows` rows (positions of the output)."""
        spec = self.network.spec
        merge = plan_contraction(spec.cores, spec.modes, spec.sizes).multiply_adds
        return self.fan_in * self.out_channels + round(merge / num_rows)

    @property
    def weight(self) -> Tensor:
        """The kernel, (out_channels, in_channels / groups, *kernel_size); differentiable in the cores."""
        kernel = self.network.dense().reshape(prod(self.out_shape), prod(self.in_shape), *self.kernel_size)
        return kernel[: self.out_channels, : self.in_channels // self.groups]

    def extra_repr(self) -> str:
        """What `print` shows of it."""
        sizes = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        more = f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}, bias={self.bias is not None}"
        return f"{sizes}, {more}, out_shape={self.out_shape}, in_shape={self.in_shape}"


class TensorizedConv1d(TensorizedConv):
    """`torch.nn.Conv1d` with a kernel of fewer parameters: see TensorizedConv."""

    num_dims = 1


class TensorizedConv2d(TensorizedConv):
    """`torch.nn.Conv2d` with a kernel of fewer parameters: see TensorizedConv."""

    num_dims = 2


class TensorizedConv3d(TensorizedConv):
    """`torch.nn.Conv3d` with a kernel of fewer parameters: see TensorizedConv."""

    num_dims = 3
