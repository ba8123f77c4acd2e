"""Small trainable networks beside frozen linear layers: LoRA's pair, FLoRA's Tucker, LoRETTA's train."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from math import prod
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from distsam.errors import ArgumentError, renaming_all
from distsam.tensornet.arguments import checked_positive, checked_size
from distsam.tensornet.initial import draw_cores
from distsam.tensornet.layers.linear import TensorizedLinear
from distsam.tensornet.layers.weight import NetworkArguments, checked_input, padded, shapes_of, uniform_std
from distsam.tensornet.network import TensorNetwork, deferred_draws
from distsam.tensornet.products import plan_multiply
from distsam.tensornet.ranks import Rank, Shape, clamped_rank, weight_spec
from distsam.tensornet.rules import Rules, chosen_layers, replace_modules
from distsam.tensornet.spec import NetworkSpec

ADAPTERS = ("lora", "tucker", "tt")
_KEYS = ("format", "rank", "alpha", "dropout", "out_shape", "in_shape", "pad")


class TensorizedAdapter(nn.Module):
    """y = layer(x) + (alpha / rank) D x, with D a small tensor network and the layer frozen.

    D starts at zero: its first core is zero, the others are drawn so that what they hand to it has the variance that
    torch's start of a linear layer gives.

    Args:
        layer: an nn.Linear; its parameters are frozen, and stay the parameters "layer.weight", "layer.bias".
        format: "lora" (cores B of out x r and A of r x in, as in arXiv:2106.09685), "tucker" (a central core between
            two factors, as FLoRA, arXiv:2405.14739) or "tt" (a train along the factors of both sizes, as LoRETTA,
            arXiv:2402.11417).
        rank: of every bond; for "tucker" and "tt" also as TensorizedLinear takes it.
        alpha: D is scaled by alpha / rank (rank 1 where that is no number); rank when None, which scales by 1.
        dropout: of the adapter's input, in training.
        arguments: `out_shape`, `in_shape`, `pad` (of "tt"), `generator`: see NetworkArguments.

    Attributes:
        network: the TensorNetwork D; its parameters are "network.cores.0", ...
        is_merged: True while the layer's weight holds the adapter.

    Raises:
        ArgumentError: another kind of layer, or a format, rank, alpha or dropout that cannot be.
    """

    def __init__(
        self,
        layer: nn.Linear,
        *,
        format: str = "lora",
        rank: Rank = 8,
        alpha: float | None = None,
        dropout: float = 0.0,
        **arguments: Unpack[NetworkArguments],
    ) -> None:
        super().__init__()
        if not isinstance(layer, nn.Linear):
            raise ArgumentError("layer", f"is a {type(layer).__name__}; adapters go beside nn.Linear")
        if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
            raise ArgumentError("dropout", f"is {dropout!r}; it must be from 0 to below 1")
        self.layer = layer.requires_grad_(False)
        spec, self.out_shape, self.in_shape = _adapter_spec(layer, format, rank, arguments)
        number = spec.size("r") if format == "lora" else rank if isinstance(rank, int) else 1
        self.scale = 1.0 if alpha is None else checked_positive(alpha, "alpha") / number
        # Its own start is not drawn: `reset_parameters` puts other cores in its place.
        with deferred_draws():
            self.network = TensorNetwork(spec, dtype=layer.weight.dtype, device=layer.weight.device)
        self.reset_parameters(arguments.get("generator"))
        self.dropout = nn.Dropout(dropout)
        self._plans = plan_multiply(spec, spec.modes[len(self.out_shape) :])
        # In a tuple: as an attribute it would be a parameter of this module.
        self._kept: tuple[nn.Parameter, ...] = ()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws all cores but the first again, which becomes zero."""
        if any(core.is_meta for core in self.network.cores) and not self.network.is_deferred:
            return
        rest = _without_first(self.network.spec)
        std = uniform_std(self.layer.in_features)
        drawn = draw_cores(rest, std=std, generator=generator)
        self.network.load_cores([torch.zeros(self.network.spec.core_shapes[0]), *drawn])

    @property
    def is_merged(self) -> bool:
        """True while the layer's weight holds the adapter."""
        return bool(self._kept)

    def forward(self, input: Tensor) -> Tensor:
        """y = layer(x) + scale D x, of shape (..., out_features) for x of (..., in_features)."""
        y = self.layer(input)
        if self.is_merged:
            return y
        x = self.dropout(checked_input(input, self.layer.in_features, -1, self.network.cores[0], "adapter"))
        vectors = padded(x, prod(self.in_shape)).reshape(-1, *self.in_shape)
        change = self.network.multiply(vectors, self._plans).reshape(*x.shape[:-1], prod(self.out_shape))
        return y + self.scale * change[..., : self.layer.out_features]

    @property
    def change(self) -> Tensor:
        """What the adapter adds to the layer's weight, (out_features, in_features); differentiable in the cores."""
        matrix = self.network.dense().reshape(prod(self.out_shape), prod(self.in_shape))
        return self.scale * matrix[: self.layer.out_features, : self.layer.in_features]

    @property
    def weight(self) -> Tensor:
        """The matrix that the layer and its adapter stand for together: some modules read it in place of a call."""
        return self.layer.weight if self.is_merged else self.layer.weight + self.change

    @property
    def bias(self) -> Tensor | None:
        """The layer's."""
        return self.layer.bias

    @property
    def in_features(self) -> int:
        """The layer's."""
        return self.layer.in_features

    @property
    def out_features(self) -> int:
        """The layer's."""
        return self.layer.out_features

    @torch.no_grad()
    def merge(self) -> None:
        """Gives the layer a weight with the adapter in it; the one it had is kept for `unmerge`. Again: nothing.

        A weight of its own: what shares the old one keeps that as it is.
        """
        if not self._kept:
            own = self.layer.weight
            assert isinstance(own, nn.Parameter)
            self.layer.weight = nn.Parameter(own + self.change, own.requires_grad)
            self._kept = (own,)

    def unmerge(self) -> None:
        """Puts the layer's own weight back. If it is not merged: nothing."""
        for own in self._kept:
            now = self.layer.weight
            moved = own.detach().to(now.device, now.dtype)
            is_moved = (own.device, own.dtype) != (now.device, now.dtype)
            self.layer.weight = nn.Parameter(moved, own.requires_grad) if is_moved else own
        self._kept = ()

    def extra_repr(self) -> str:
        """What `print` shows of it."""
        return f"format={self.network.spec.format}, scale={self.scale:g}, is_merged={self.is_merged}"


def _adapter_spec(
    layer: nn.Linear, format: str, rank: Rank, arguments: NetworkArguments
) -> tuple[NetworkSpec, Shape, Shape]:
    sizes = layer.out_features, layer.in_features
    if format == "tt":
        shapes = shapes_of(("out_features", sizes[0]), ("in_features", sizes[1]), format, arguments)
        return weight_spec(format, *shapes, rank), *shapes
    for name in ("out_shape", "in_shape", "pad"):
        if arguments.get(name):
            raise ArgumentError(name, f"is {arguments[name]!r}; only tt cuts the sizes into modes")
    shapes = ((sizes[0],), (sizes[1],))
    if format == "tucker":
        return weight_spec(format, *shapes, rank), *shapes
    if format == "lora":
        number = clamped_rank(checked_size(rank, "rank"), min(sizes), stacklevel=4)
        bonds = {"o": sizes[0], "i": sizes[1], "r": number}
        return NetworkSpec("lora", (("o", "r"), ("r", "i")), ("o", "i"), tuple(bonds.items()), ("B", "A")), *shapes
    raise ArgumentError("format", f"is {format!r}; use one of {', '.join(ADAPTERS)}")


def _without_first(spec: NetworkSpec) -> NetworkSpec:
    """The network of all cores but the first, whose bonds become modes."""
    cores = spec.cores[1:]
    carried = dict.fromkeys(index for core in cores for index in core)
    opened = [index for index in carried if index in spec.modes or index in spec.cores[0]]
    sizes = tuple((index, spec.size(index)) for index in carried)
    return replace(spec, cores=cores, modes=tuple(opened), sizes=sizes, core_names=spec.core_names[1:])


def add_adapters(model: nn.Module, rules: Rules) -> list[str]:
    """Freezes `model` and puts an adapter beside the linear layers that the rules choose, in place.

    Args:
        model: whatever holds nn.Linear.
        rules: a pattern as in fnmatch on the names of modules, or "type:Linear" -> format, rank, alpha, dropout,
            out_shape, in_shape, pad, as TensorizedAdapter takes them; None leaves those layers alone.

    Returns:
        The names of the adapters. Only their cores are trained, and those of adapters that were there:
        `adapter_state(model)` is what there is to save.

    Raises:
        ArgumentError: a pattern that fits no linear layer, or what an adapter refuses.
    """
    taken = {id(adapter.layer) for adapter in adapters_of(model).values()}
    chosen = chosen_layers(model, rules, [nn.Linear], _KEYS)
    was_trained = [(param, param.requires_grad) for param in model.parameters()]
    try:
        adapters = {layer: _adapter(name, layer, rule, taken) for name, layer, rule in chosen}
    except ArgumentError:
        for param, is_trained in was_trained:
            param.requires_grad_(is_trained)
        raise
    model.requires_grad_(False)
    replace_modules(model, adapters)
    for adapter in adapters_of(model).values():
        adapter.network.requires_grad_(True)
    return [name for name, _, _ in chosen]


def _adapter(name: str, layer: Any, rule: Mapping[str, Any], taken: set[int]) -> nn.Module:
    if id(layer) in taken:
        raise ArgumentError(f"rules[{name}]", "has an adapter already")
    with renaming_all(f"rules[{name}]"):
        return TensorizedAdapter(layer, **rule).train(layer.training)


def train_part(model: nn.Module, rules: Rules, patterns: Sequence[str] | None = None) -> None:
    """Freezes `model` but for adapters, which it gets by `rules`, and the parameters that `patterns` name, in place.

    Args:
        model: whatever holds nn.Linear.
        rules: as of `add_adapters`; none are added where it is empty.
        patterns: as in fnmatch on the names of parameters; None: those of the last linear layer, dense or tensorized,
            which classifies, unless it has an adapter.

    Raises:
        ArgumentError: of `trained`: a pattern that fits no parameter, or nothing to train; or as `add_adapters`.
    """
    if patterns is None:
        linear = [name for name, module in model.named_modules() if type(module) in (nn.Linear, TensorizedLinear)]
        chosen = {name for name, _, _ in chosen_layers(model, rules, [nn.Linear], _KEYS)}
        patterns = [f"{name}.*" for name in linear[-1:] if name not in chosen]
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            near = get_close_matches(pattern, names, n=5, cutoff=0.3) or names[-5:]
            raise ArgumentError("trained", f"{pattern!r} fits no parameter; there are {', '.join(near)}")
    model.requires_grad_(False)
    for name, param in model.named_parameters():
        param.requires_grad_(any(fnmatchcase(name, pattern) for pattern in patterns))
    trained = [param for param in model.parameters() if param.requires_grad]
    if rules:
        add_adapters(model, rules)
    for param in trained:
        param.requires_grad_(True)
    if not any(param.requires_grad for param in model.parameters()):
        raise ArgumentError("trained", f"is {list(patterns)}, and there are no adapters: nothing would be trained")


def adapters_of(model: nn.Module) -> Mapping[str, TensorizedAdapter]:
    """Name -> every adapter in `model`."""
    return {name: module for name, module in model.named_modules() if isinstance(module, TensorizedAdapter)}


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """The cores of all adapters by their names in the model's state_dict; `load_state_dict(..., strict=False)` reads
    it."""
    names = [f"{name}.network." if name else "network." for name in adapters_of(model)]
    return {key: value for key, value in model.state_dict().items() if key.startswith(tuple(names))}


def remove_adapters(model: nn.Module, *, merge: bool = True) -> nn.Module:
    """Puts the layers back in the places of their adapters, with what those have learnt (`merge`) or as they were.

    The model stays frozen.
    """
    layers: dict[nn.Module, nn.Module] = {}
    for adapter in adapters_of(model).values():
        if merge:
            adapter.merge()
        else:
            adapter.unmerge()
        layers[adapter] = adapter.layer
    replace_modules(model, layers)
    return model
