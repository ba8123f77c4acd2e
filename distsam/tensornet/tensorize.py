"""Replace a model's layers by tensorized ones, and back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from distsam.errors import ArgumentError, renaming_all
from distsam.tensornet.decompose import decompose
from distsam.tensornet.layers.conversion import (
    CONVERTIBLE,
    TensorizedLayer,
    copied_rest,
    densified,
    is_lookup,
    tensorized_like,
    unfolded,
)
from distsam.tensornet.rules import Chosen, Rules, chosen_layers, replace_modules

# The cost of merging cores is shared by so many rows.
FLOPS_ROWS = 1024
_KEYS = ("format", "rank", "out_shape", "in_shape", "pad")


@dataclass(frozen=True)
class TensorizedRow:
    """What became of one layer.

    Args:
        name: of the module.
        kind: the type that it was.
        format, bonds: of its network.
        parameters_before, parameters_after: of its weight; a shared network counts where it stands first.
        relative_error: ||W - W'|| / ||W||, of the weight as it was and as the cores have it; None for a random start.
        flops_before, flops_after: multiply-adds for one row of input (of a convolution: for one position of the
            output), of 1,024 that share the cost of merging cores.
        core_norms: Frobenius norms; equal.
    """

    name: str
    kind: str
    format: str
    bonds: tuple[int, ...]
    parameters_before: int
    parameters_after: int
    relative_error: float | None
    flops_before: int
    flops_after: int
    core_norms: tuple[float, ...]


@dataclass(frozen=True)
class TensorizedTable(Sequence[TensorizedRow]):
    """The rows, in the order of the model; printing it shows a table."""

    rows: tuple[TensorizedRow, ...]

    def __getitem__(self, place: Any) -> Any:
        return self.rows[place]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def parameters_before(self) -> int:
        """Of all replaced weights together."""
        return sum(row.parameters_before for row in self.rows)

    @property
    def parameters_after(self) -> int:
        """Of their networks together."""
        return sum(row.parameters_after for row in self.rows)

    def __str__(self) -> str:
        head = ("layer", "format", "bonds", "parameters", "now", "ratio", "error", "multiply-adds", "now", "core norm")
        lines = [head, *(_cells(row) for row in self.rows)]
        total = self.parameters_before, self.parameters_after
        lines.append(("all", "", "", f"{total[0]:,}", f"{total[1]:,}", _ratio(*total), "", "", "", ""))
        widths = [max(len(line[n]) for line in lines) for n in range(len(head))]
        return "\n".join(
            "  ".join(c.ljust(w) if n < 3 else c.rjust(w) for n, (c, w) in enumerate(zip(line, widths, strict=True)))
            for line in lines
        )


def _cells(row: TensorizedRow) -> tuple[str, ...]:
    before, after = row.parameters_before, row.parameters_after
    bonds = ",".join(map(str, row.bonds)) if len(set(row.bonds)) > 1 else str(row.bonds[0])
    numbers = (
        f"{before:,}",
        f"{after:,}",
        _ratio(before, after),
        "" if row.relative_error is None else f"{row.relative_error:.3g}",
    )
    flops = (f"{row.flops_before:,}", f"{row.flops_after:,}")
    return (row.name, row.format, bonds, *numbers, *flops, f"{max(row.core_norms):.3g}")


def _ratio(before: int, after: int) -> str:
    return f"{before / after:.2f}" if after else "shared"


def tensorize(model: nn.Module, rules: Rules, *, fit: bool = True, seed: int = 0) -> TensorizedTable:
    """Replaces layers of `model` by tensorized ones that start at their trained weights, in place.

    Args:
        model: holds nn.Linear, nn.Embedding, nn.EmbeddingBag or nn.Conv1d, 2d, 3d, of exactly these types.
        rules: which: a pattern as in fnmatch on the names of modules, or "type:Linear" -> format, rank, out_shape,
            in_shape, pad, as the layers take them, and beside a rank of theirs "error:0.1", the smallest whose
            relative error is at most that; or None, which leaves those layers as they are. The first that fits counts.
        fit: the cores start as near to the layer's weight as their rank allows; if False at a random start, as those
            of a new layer, for training from scratch.
        seed: of what the decompositions draw at random.

    Returns:
        A row for each replaced layer. A module that stands in several places stays one; so does the weight that an
        embedding and an output layer share. Nothing is replaced where one of them raises.

    Raises:
        ArgumentError: a pattern that fits no layer (it lists names that are near), a rule with an unknown key or a
            value that the layer refuses, a model that is itself such a layer, or a weight shared with a layer that
            no rule fits, which would no longer be shared.
    """
    chosen = chosen_layers(model, rules, CONVERTIBLE, _KEYS)
    _check_shared(model, chosen)
    made = _Made(fit, seed)
    for name, module, rule in chosen:
        made.replace(name, module, rule)
    replace_modules(model, made.replacements)
    return TensorizedTable(tuple(made.rows))


def densify(model: nn.Module) -> nn.Module:
    """The inverse of `tensorize`: every tensorized layer becomes torch's with the weight its cores stand for, in place.

    Returns:
        `model`; or, if it is itself a tensorized layer, the dense one.
    """
    if isinstance(model, TensorizedLayer):
        return densified(model)
    replacements: dict[nn.Module, nn.Module] = {}
    weights: dict[nn.Module, nn.Parameter] = {}
    dense_layers: list[tuple[nn.Module, Any]] = []
    for module in model.modules():
        if isinstance(module, TensorizedLayer):
            dense: Any = densified(module)
            dense.weight.requires_grad_(any(core.requires_grad for core in module.network.cores))
            # Of a shared weight the whole table counts, with what an embedding hides in its row of padding.
            hides_row = getattr(module, "padding_idx", None) is not None
            if module.network not in weights or not hides_row:
                weights[module.network] = dense.weight
            dense_layers.append((module.network, dense))
            replacements[module] = dense
    for network, dense in dense_layers:
        dense.weight = weights[network]
    replace_modules(model, replacements)
    return model


def _check_shared(model: nn.Module, chosen: list[Chosen]) -> None:
    replaced = {id(module) for _, module, _ in chosen}
    weights = {id(module.weight): name for name, module, _ in chosen}
    for name, module in model.named_modules():
        for own in module._parameters.values():
            if id(own) in weights and id(module) not in replaced:
                problem = f"shares its weight with {name!r}, which no rule fits: give both a rule, or neither"
                raise ArgumentError(weights[id(own)], problem)


class _Made:
    """The replacements so far."""

    def __init__(self, fit: bool, seed: int) -> None:
        self.fit, self.seed = fit, seed
        self.replacements: dict[nn.Module, nn.Module] = {}
        self.rows: list[TensorizedRow] = []
        self.of_weight: dict[nn.Parameter, tuple[TensorizedLayer, TensorizedRow]] = {}

    def replace(self, name: str, module: Any, rule: Mapping[str, Any]) -> None:
        """Adds the replacement of one module, and its row."""
        weight, error = module.weight, None
        layer: TensorizedLayer
        with renaming_all(f"rules[{name}]"):
            if self.fit:
                layer, error = _fitted(module, dict(rule), self.seed)
            else:
                layer = tensorized_like(module, rule)
                # Drawn even where starts are deferred: the row tells the norms, and the dense weight takes more room.
                layer.network.draw_deferred()
        self.replacements[module] = copied_rest(module, layer)
        parameters = weight.numel(), layer.network.spec.num_parameters
        shared = self.of_weight.get(weight)
        if shared is not None:
            _check_alike(name, layer, shared[0], shared[1].name)
            layer.network = shared[0].network
            parameters, error = (0, 0), shared[1].relative_error
        layer.network.requires_grad_(weight.requires_grad)
        row = _row(name, module, layer, parameters, error)
        self.rows.append(row)
        self.of_weight.setdefault(weight, (layer, row))


def _row(
    name: str, module: Any, layer: TensorizedLayer, parameters: tuple[int, int], error: float | None
) -> TensorizedRow:
    spec = layer.network.spec
    norms = tuple(float(torch.linalg.vector_norm(core.detach())) for core in layer.network.cores)
    bonds = tuple(size for _, size in _bond_sizes(layer))
    return TensorizedRow(
        name,
        type(module).__name__,
        spec.format,
        bonds,
        *parameters,
        error,
        0 if is_lookup(module) else module.weight.numel(),
        layer.multiply_adds(FLOPS_ROWS),
        norms,
    )


def _check_alike(name: str, layer: TensorizedLayer, other: TensorizedLayer, other_name: str) -> None:
    if layer.network.spec != other.network.spec:
        problem = f"shares its weight with {other_name!r}: give both the same format and rank"
        raise ArgumentError(name, problem)


def _fitted(module: Any, rule: dict[str, Any], seed: int) -> tuple[TensorizedLayer, float]:
    """The tensorized layer nearest to `module`, and its relative error."""
    rank = rule.get("rank")
    if isinstance(rank, str) and rank.startswith("error:"):
        return _fitted_to_error(module, rule, rank, seed)
    layer = tensorized_like(module, rule)
    weight = module.weight.detach()
    if not torch.isfinite(weight).all():
        # A decomposition takes NaN for a missing entry.
        raise ArgumentError("weight", "is not finite; nothing comes near it")
    if not weight.any():
        raise ArgumentError("weight", "is zero throughout, which has no cores of equal norms; leave the layer as it is")
    layer.network.load_cores(decompose(unfolded(layer, weight), layer.network.spec, seed=seed))
    with torch.no_grad():
        error = torch.linalg.vector_norm(layer.weight.double() - weight.double())
    return layer, float(error / torch.linalg.vector_norm(weight.double()))


def _fitted_to_error(module: Any, rule: dict[str, Any], word: str, seed: int) -> tuple[TensorizedLayer, float]:
    """The smallest rank that meets the error: doubled until it does, then halved in between."""
    try:
        wanted = float(word.removeprefix("error:"))
    except ValueError:
        wanted = -1.0
    if not 0 < wanted < 1:
        raise ArgumentError("rank", f"is {word!r}; write the relative error as in error:0.1")
    largest = max(size for bond, size in _bond_sizes(tensorized_like(module, {**rule, "rank": "full"})))
    low, high = 0, 1
    found = _fitted(module, {**rule, "rank": high}, seed)
    while found[1] > wanted and high < largest:
        low, high = high, min(2 * high, largest)
        found = _fitted(module, {**rule, "rank": high}, seed)
    if found[1] > wanted:
        return _fitted(module, {**rule, "rank": "full"}, seed)
    while high - low > 1:
        middle = (low + high) // 2
        tried = _fitted(module, {**rule, "rank": middle}, seed)
        if tried[1] <= wanted:
            high, found = middle, tried
        else:
            low = middle
    return found


def _bond_sizes(layer: TensorizedLayer) -> list[tuple[str, int]]:
    spec = layer.network.spec
    return [(bond, spec.size(bond)) for bond in spec.bonds]
