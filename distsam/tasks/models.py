"""Models for classification: a multilayer perceptron, the residual networks of CIFAR, a small transformer."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from distsam.errors import ArgumentError

Shape = tuple[int, ...]


def mlp(shape: Shape, num_classes: int, widths: Sequence[int] = (256, 256), dropout: float = 0.0) -> nn.Module:
    """Linear layers with ReLU between them, on the flattened input: "0", "3", ... are linear."""
    sizes = [prod(shape), *widths]
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], num_classes))


class _Block(nn.Module):
    """Two 3 x 3 convolutions and the input beside them; where channels grow, the input is thinned and filled with
    zeros."""

    def __init__(self, before: int, after: int, norm: str) -> None:
        super().__init__()
        self.before, self.after = before, after
        self.stride = 1 if before == after else 2
        self.conv1 = nn.Conv2d(before, after, 3, self.stride, 1, bias=False)
        self.norm1 = _norm(after, norm)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm2 = _norm(after, norm)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(relu(self.norm1(self.conv1(x)))))
        beside = x[:, :, :: self.stride, :: self.stride]
        return relu(y + nn.functional.pad(beside, (0, 0, 0, 0, 0, self.after - self.before)))


def _norm(channels: int, norm: str) -> nn.Module:
    return nn.BatchNorm2d(channels) if norm == "batch" else nn.GroupNorm(min(8, channels), channels)


def resnet(shape: Shape, num_classes: int, depth: int = 20, width: int = 16, norm: str = "batch") -> nn.Module:
    """The residual network of 6 n + 2 layers for small images.

    Args:
        shape: (channels, height, width) of an input; (height, width) is one channel.
        num_classes: C.
        depth: 20, 32, 44, ...
        width: channels of the first of three stages; each doubles them.
        norm: "batch", or "group", which computes the same on any number of ranks.

    Source: He et al. 2015, arXiv:1512.03385, section 4.2, shortcut A.
    """
    if len(shape) not in (2, 3):
        raise ArgumentError("kind", f"is resnet{depth}, for images; these inputs have shape {shape}")
    channels = shape[0] if len(shape) == 3 else 1
    layers: list[nn.Module] = [nn.Unflatten(1, (1, shape[0]))] if len(shape) == 2 else []
    layers += [nn.Conv2d(channels, width, 3, 1, 1, bias=False), _norm(width, norm), nn.ReLU()]
    before = width
    for stage in range(3):
        after = width * 2**stage
        for _ in range((depth - 2) // 6):
            layers.append(_Block(before, after, norm))
            before = after
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, num_classes))


class Transformer(nn.Module):
    """An encoder over a sequence, its mean classified.

    Args:
        shape: (length, features) of an input; an image (channels, height, width) is read row by row; a vector is cut
            into tokens of `token` numbers.
        num_classes: C.
        width, heads, depth: of the encoder; its feed-forward layers are four times as wide.
        token: numbers in a token of a vector.
        dropout: within the encoder.
    """

    def __init__(
        self,
        shape: Shape,
        num_classes: int,
        width: int = 64,
        heads: int = 4,
        depth: int = 2,
        token: int = 8,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ArgumentError("width", f"is {width}; {heads} heads must divide it")
        self.token = token
        length, features = _sequence(shape, token)
        self.embed = nn.Linear(features, width)
        self.place = nn.Parameter(torch.randn(length, width) * 0.02)
        # Dropout of 0 and no fast path: training and evaluation compute the same.
        self.blocks = nn.ModuleList(_Encoder(width, heads, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(_as_sequence(x, self.token)) + self.place
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x.mean(1)))


class _Encoder(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        q, k, v = (self._heads(layer(h)) for layer in (self.query, self.key, self.value))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout * self.training)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


def _sequence(shape: Shape, token: int) -> tuple[int, int]:
    """(length, features) of what `_as_sequence` makes of an input of this shape."""
    if len(shape) == 1:
        return -(-shape[0] // token), token
    if len(shape) == 2:
        return shape[0], shape[1]
    if len(shape) == 3:
        return shape[1], shape[0] * shape[2]
    raise ArgumentError("kind", f"is transformer, for sequences; these inputs have shape {shape}")


def _as_sequence(x: Tensor, token: int) -> Tensor:
    if x.dim() == 2:
        missing = -x.shape[1] % token
        return nn.functional.pad(x, (0, missing)).unflatten(1, (-1, token))
    return x if x.dim() == 3 else x.transpose(1, 2).flatten(2)
