"""From torch's layers to ours and back: one pair of functions for each kind of layer."""

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from distsam.errors import ArgumentError
from distsam.tensornet.layers.convolution import TensorizedConv, TensorizedConv1d, TensorizedConv2d, TensorizedConv3d
from distsam.tensornet.layers.embedding import TensorizedEmbedding, TensorizedEmbeddingBag
from distsam.tensornet.layers.linear import TensorizedLinear

TensorizedLayer = TensorizedLinear | TensorizedEmbedding | TensorizedConv
_CONVOLUTIONS: dict[type[nn.Module], type[TensorizedConv]] = {
    nn.Conv1d: TensorizedConv1d,
    nn.Conv2d: TensorizedConv2d,
    nn.Conv3d: TensorizedConv3d,
}
_DENSE_CONVOLUTIONS: dict[type[TensorizedConv], Any] = {ours: theirs for theirs, ours in _CONVOLUTIONS.items()}


def tensorized_like(layer: nn.Module, options: Mapping[str, Any]) -> TensorizedLayer:
    """A layer of ours of the sizes, dtype and device of `layer`, with cores still to be set.

    Args:
        layer: of a type in CONVERTIBLE.
        options: format, rank, out_shape, in_shape, pad; and padding_idx, of a table, in place of the layer's own.

    Raises:
        ArgumentError: the layer has options that ours lacks, or what ours refuses.
    """
    return CONVERTIBLE[type(layer)](layer, dict(options))


def _linear(layer: Any, options: dict[str, Any]) -> TensorizedLinear:
    sizes = layer.in_features, layer.out_features, layer.bias is not None
    return TensorizedLinear(*sizes, layer.weight.device, layer.weight.dtype, **options)


def _embedding(layer: Any, options: dict[str, Any]) -> TensorizedEmbedding:
    padding_idx = options.pop("padding_idx", _zero_row(layer))
    _check_plain_table(layer)
    sizes = layer.num_embeddings, layer.embedding_dim, padding_idx
    return TensorizedEmbedding(*sizes, layer.weight.device, layer.weight.dtype, **options)


def _check_plain_table(layer: Any) -> None:
    for name in ("max_norm", "scale_grad_by_freq"):
        if getattr(layer, name):
            raise ArgumentError(name, f"is {getattr(layer, name)}, which a tensorized table does not have")


def _zero_row(layer: Any) -> int | None:
    """The padding row; None where training has given it values, as that of a shared weight: ours is zero."""
    row: int | None = layer.padding_idx
    return row if row is None or layer.weight.is_meta or not layer.weight[row].any() else None


def _bag(layer: Any, options: dict[str, Any]) -> TensorizedEmbeddingBag:
    _check_plain_table(layer)
    # That row is in no bag, whatever it holds.
    padding_idx = options.pop("padding_idx", layer.padding_idx)
    return TensorizedEmbeddingBag(
        layer.num_embeddings,
        layer.embedding_dim,
        mode=layer.mode,
        include_last_offset=layer.include_last_offset,
        padding_idx=padding_idx,
        device=layer.weight.device,
        dtype=layer.weight.dtype,
        **options,
    )


def _convolution(layer: Any, options: dict[str, Any]) -> TensorizedConv:
    where = {"device": layer.weight.device, "dtype": layer.weight.dtype}
    return _CONVOLUTIONS[type(layer)](**_convolution_arguments(layer), **where, **options)


def _convolution_arguments(layer: Any) -> dict[str, Any]:
    names = ["in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"]
    return {**{name: getattr(layer, name) for name in names}, "bias": layer.bias is not None}


# Exactly these types: a subclass may use its weight in ways of its own.
CONVERTIBLE: dict[type[nn.Module], Callable[[Any, dict[str, Any]], TensorizedLayer]] = {
    nn.Linear: _linear,
    nn.Embedding: _embedding,
    nn.EmbeddingBag: _bag,
    **dict.fromkeys(_CONVOLUTIONS, _convolution),
}


def is_lookup(layer: nn.Module) -> bool:
    """True for tables of rows, of torch's or ours."""
    return isinstance(layer, nn.Embedding | nn.EmbeddingBag | TensorizedEmbedding)


def unfolded(layer: TensorizedLayer, weight: Tensor) -> Tensor:
    """A dense weight of this layer as the tensor of its network, with zeros where the modes reach beyond the sizes."""
    # Of a convolution the kernel's dims follow.
    filled = weight.new_zeros(prod(layer.out_shape), prod(layer.in_shape), *weight.shape[2:])
    filled[tuple(slice(size) for size in weight.shape)] = weight
    return filled.reshape(layer.network.spec.shape)


@torch.no_grad()
def densified(layer: TensorizedLayer) -> nn.Module:
    """Torch's layer with the weight that the cores of `layer` stand for."""
    weight = layer.weight
    where: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
    dense: Any
    if isinstance(layer, TensorizedLinear):
        dense = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, **where)
    elif isinstance(layer, TensorizedEmbeddingBag):
        sizes = layer.num_embeddings, layer.embedding_dim
        bags: dict[str, Any] = {"mode": layer.mode, "include_last_offset": layer.include_last_offset}
        dense = nn.EmbeddingBag(sizes[0], sizes[1], padding_idx=layer.padding_idx, **bags, **where)
    elif isinstance(layer, TensorizedEmbedding):
        dense = nn.Embedding(layer.num_embeddings, layer.embedding_dim, layer.padding_idx, **where)
    else:
        dense = _DENSE_CONVOLUTIONS[type(layer)](**_convolution_arguments(layer), **where)
    dense.weight.copy_(weight)
    return copied_rest(layer, dense)


def copied_rest(source: Any, target: Any) -> Any:
    """`target` with the bias and the training mode of `source`."""
    bias = getattr(source, "bias", None)
    if bias is not None:
        # The very parameter: whoever shares it goes on sharing it.
        target.bias = bias
    return target.train(source.training)
