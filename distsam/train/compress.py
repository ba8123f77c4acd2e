"""Compress a saved model: its matrices become tensor networks, whatever architecture it has."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from distsam.errors import InputError
from distsam.tensornet.exchange import METADATA, networks_of
from distsam.tensornet.tensorize import TensorizedTable, densify, tensorize

WEIGHTS = "model.safetensors"
_CONVOLUTIONS = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}


def compress_model(
    model: Path, output: Path, rules: Mapping[str, Mapping[str, Any] | None], *, dense: bool = False, seed: int = 0
) -> TensorizedTable:
    """Writes a model folder whose weights of two and more dims are tensor networks where the rules say so.

    Args:
        model: a folder with model.safetensors, as Hugging Face's save_pretrained writes it, or such a file.
        output: a new folder: model.safetensors, which `load_tensorized` reads, compression.json with the table, and
            the other files of the model's folder.
        rules: as of `tensorize`, on the names of modules: "encoder.layer.0.output.dense" for the tensor of that name
            with ".weight".
        dense: write the matrices that the networks stand for, under their old names: any program reads the file, which
            is as large as before.
        seed: of what the decompositions draw at random.

    Returns:
        A row for each weight that was replaced.

    Raises:
        InputError: the model cannot be read, the output is there, or a rule fits nothing.
    """
    file = model / WEIGHTS if model.is_dir() else model
    if output.exists():
        raise InputError(f"{output} is there already; give a new folder")
    tensors = _read(file)
    layers = _as_layers(tensors)
    before = set(layers.state_dict())
    table = tensorize(layers, rules, seed=seed)
    metadata = {"format": "pt"} if dense else {"format": "pt", METADATA: json.dumps(networks_of(layers))}
    if dense:
        densify(layers)
    output.parent.mkdir(parents=True, exist_ok=True)
    # Renamed at the end: a folder of that name is a whole one.
    unfinished = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        if model.is_dir():
            shutil.copytree(model, unfinished, ignore=shutil.ignore_patterns("*.safetensors", "*.bin"))
        else:
            unfinished.mkdir()
        save_file(_contents(tensors, before, layers), str(unfinished / WEIGHTS), metadata)
        rows = [row.__dict__ for row in table]
        (unfinished / "compression.json").write_text(json.dumps(rows, indent=1) + "\n")
        unfinished.rename(output)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise InputError(f"{output} cannot be written: {error.strerror}") from None
    return table


def _read(file: Path) -> dict[str, Tensor]:
    if not file.exists():
        raise InputError(f"{file}: no such file; give a folder with {WEIGHTS}, or a .safetensors file")
    try:
        return load_file(str(file))
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file} cannot be read as safetensors: {error}") from None


def _as_layers(tensors: Mapping[str, Tensor]) -> nn.Module:
    """A module with a layer for each tensor that can be the weight of one: of two dims a linear layer, of more a
    convolution. It is flat: the names of its children have dots, so that none stands inside another, and is lost with
    it."""
    layers = nn.Module()
    for name, tensor in tensors.items():
        if _is_layer(name, tensor):
            path = name.removesuffix(".weight")
            # Not add_module, which refuses dots.
            layers._modules[path] = _layer_of(tensor, tensors.get(f"{path}.bias"))
    return layers


def _is_layer(name: str, tensor: Tensor) -> bool:
    return name.endswith(".weight") and 2 <= tensor.dim() <= 5 and tensor.is_floating_point() and tensor.numel() > 0


def _layer_of(weight: Tensor, bias: Tensor | None) -> nn.Module:
    # Without memory: what is drawn for it would be thrown away.
    with torch.device("meta"):
        if weight.dim() == 2:
            layer: nn.Module = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        else:
            kind: Any = _CONVOLUTIONS[weight.dim()]
            layer = kind(weight.shape[1], weight.shape[0], tuple(weight.shape[2:]), bias=False)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer


def _contents(tensors: Mapping[str, Tensor], before: set[str], layers: nn.Module) -> dict[str, Tensor]:
    """What is written: the tensors that were in no layer, and what the layers hold now."""
    rest = {name: tensor for name, tensor in tensors.items() if name not in before}
    now = {name: tensor.detach() for name, tensor in layers.state_dict().items()}
    return {name: tensor.contiguous() for name, tensor in {**rest, **now}.items()}
