"""Layers whose weights are tensor networks, in place of torch's."""

from distsam.tensornet.layers.convolution import TensorizedConv1d, TensorizedConv2d, TensorizedConv3d
from distsam.tensornet.layers.embedding import TensorizedEmbedding, TensorizedEmbeddingBag
from distsam.tensornet.layers.linear import TensorizedLinear

__all__ = [
    "TensorizedConv1d",
    "TensorizedConv2d",
    "TensorizedConv3d",
    "TensorizedEmbedding",
    "TensorizedEmbeddingBag",
    "TensorizedLinear",
]
