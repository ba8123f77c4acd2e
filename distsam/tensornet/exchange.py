"""Tensorized models as files, and networks as objects of other packages."""

import copy
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_model
from torch import Tensor, nn

from distsam.errors import ArgumentError, InputError
from distsam.tensornet.layers.conversion import CONVERTIBLE, TensorizedLayer, tensorized_like
from distsam.tensornet.layers.embedding import TensorizedEmbedding
from distsam.tensornet.network import TensorNetwork
from distsam.tensornet.rules import replace_modules
from distsam.tensornet.spec import NetworkSpec
from distsam.tensornet.tensorize import densify

# The key of the file's metadata under which the networks stand, as JSON: name -> what `tensorized_like` takes.
METADATA = "distsam.networks"


def save_tensorized(model: nn.Module, path: str | Path) -> None:
    """Writes all weights of `model` as safetensors, with the spec of every tensorized layer in the metadata.

    A weight that several layers share is written once.

    Args:
        model: holds any layers; whole, not sharded.
        path: of the file; an existing one is replaced.

    Raises:
        InputError: it cannot be written.
    """
    metadata = {"format": "pt", METADATA: json.dumps(networks_of(model))}
    try:
        save_model(model, str(path), metadata)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be written: {error}") from None


def load_tensorized(model: nn.Module, path: str | Path) -> nn.Module:
    """Gives `model` the layers and weights of a file of `save_tensorized`, in place.

    Args:
        model: of the architecture that was tensorized, its layers dense and with any weights.
        path: of the file.

    Returns:
        `model`.

    Raises:
        InputError: the file cannot be read, or is of another model; the first name that differs is said.
    """
    networks, tensors = _read(path)
    replacements: dict[nn.Module, nn.Module] = {}
    made: dict[tuple[str, ...], TensorizedLayer] = {}
    modules = dict(model.named_modules())
    for name, options in networks.items():
        layer = modules.get(name)
        if layer is None or type(layer) not in CONVERTIBLE:
            found = "there is no such layer" if layer is None else f"it is a {type(layer).__name__} here"
            raise InputError(f"{path} has a network for {name!r}; {found}: give the model that was tensorized")
        new = tensorized_like(layer, {key: value for key, value in options.items() if key != "shared"})
        shared = tuple(options.get("shared", ()))
        if shared:
            new.network = made.setdefault(shared, new).network
        replacements[layer] = new.train(layer.training)
    replace_modules(model, replacements)
    wanted = model.state_dict()
    own = _with_shared(model, tensors)
    # Buffers that a newer version of the model makes anew, as that of positions.
    for name in {name for name, _ in model.named_buffers()} - set(wanted):
        own.pop(name, None)
    for name in [*wanted, *own]:
        if name not in own or name not in wanted or own[name].shape != wanted[name].shape:
            problem = "is not in the file" if name not in own else "does not fit the model"
            raise InputError(f"{path}: {name} {problem}: give the model that was tensorized")
    model.load_state_dict(own)
    return model


def is_tensorized(path: str | Path) -> bool:
    """True for a file of `save_tensorized`, or of `distsam compress`."""
    try:
        with safe_open(str(path), "pt") as file:
            return METADATA in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False


def save_onnx(model: nn.Module, path: str | Path, example: tuple[Tensor, ...]) -> None:
    """Writes `model` with dense layers as ONNX, for programs without torch; needs `distsam[onnx]`.

    Args:
        model: whole, not sharded; it stays as it is, and its copy is in evaluation mode.
        path: of the file; an existing one is replaced.
        example: inputs of the model; the first dim of each is the batch, which may be any size later: give 2 or more.

    Raises:
        ArgumentError: of `example`: it is no tuple of tensors; of `path`: onnx is not installed; of `model`: torch
            cannot export it.
        InputError: it cannot be written.
    """
    if not isinstance(example, tuple) or not all(isinstance(one, Tensor) for one in example):
        raise ArgumentError("example", f"is a {type(example).__name__}; give a tuple of tensors, such as (x,)")
    dense = densify(copy.deepcopy(model)).eval()
    batch = torch.export.Dim("batch")
    try:
        with warnings.catch_warnings():
            # Of torch's exporter about itself.
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                dense, example, dynamo=True, verbose=False, dynamic_shapes=tuple({0: batch} for _ in example)
            )
        assert program is not None
        program.save(str(path))
    except ImportError as error:
        raise ArgumentError("path", f"onnx is not there ({error}); pip install 'distsam[onnx]'") from None
    except torch.onnx.errors.OnnxExporterError as error:
        reason = " ".join(str(error).split())[:200]
        raise ArgumentError("model", f"cannot be exported by torch: {reason}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error}") from None


def _layers(model: nn.Module) -> dict[str, TensorizedLayer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, TensorizedLayer)}


def _options(layer: TensorizedLayer, sharers: Mapping[TensorNetwork, list[str]]) -> dict[str, Any]:
    """What makes this layer again from the dense one in its place."""
    spec = layer.network.spec
    options = {
        "format": spec.format,
        "rank": [spec.size(bond) for bond in spec.bonds],
        "out_shape": list(layer.out_shape),
        "in_shape": list(layer.in_shape),
        "pad": True,
    }
    if isinstance(layer, TensorizedEmbedding):
        # Of the dense table it depends on what its row holds.
        options["padding_idx"] = layer.padding_idx
    return {**options, "shared": sharers[layer.network]} if len(sharers[layer.network]) > 1 else options


def networks_of(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Name of every tensorized layer -> how it is made from a dense one; JSON."""
    layers = _layers(model)
    sharers: dict[TensorNetwork, list[str]] = {}
    for name, layer in layers.items():
        sharers.setdefault(layer.network, []).append(name)
    return {name: _options(layer, sharers) for name, layer in layers.items()}


def _read(path: str | Path) -> tuple[dict[str, dict[str, Any]], dict[str, Tensor]]:
    try:
        with safe_open(str(path), "pt") as file:
            metadata = file.metadata() or {}
        tensors = load_file(str(path))
        networks = json.loads(metadata[METADATA])
    except KeyError:
        raise InputError(f"{path} says nothing of tensorized layers; it must be a file of save_tensorized") from None
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"{path} cannot be read as safetensors: {error}") from None
    return networks, tensors


def _with_shared(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The file's tensors, under every name by which the model knows them."""
    names_of: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        names_of.setdefault(id(tensor), []).append(name)
    found = dict(tensors)
    for names in names_of.values():
        written = next((name for name in names if name in tensors), None)
        if written is not None:
            found.update(dict.fromkeys(names, tensors[written]))
    return found


def to_quimb(network: TensorNetwork) -> Any:
    """A copy as a quimb TensorNetwork: its indices are those of the spec, its tags the core names.

    bfloat16, which numpy lacks, becomes float32.

    Raises:
        ImportError: quimb is not installed.
    """
    import quimb.tensor as qtn

    spec = network.spec
    return qtn.TensorNetwork(
        [
            qtn.Tensor(_to_numpy(core), inds=indices, tags=[name])
            for core, indices, name in zip(network.cores, spec.cores, spec.core_names, strict=True)
        ]
    )


def _to_numpy(core: Tensor) -> np.ndarray:
    core = core.detach().cpu()
    return (core.float() if core.dtype == torch.bfloat16 else core).numpy().copy()


def from_quimb(network: Any, modes: tuple[str, ...] | None = None) -> TensorNetwork:
    """The network of a quimb TensorNetwork, in its dtype; its format is "einsum".

    Args:
        network: real; no index may stand twice in one tensor.
        modes: the outer indices in the order of the full tensor; quimb's order when None.

    Raises:
        ArgumentError: the modes are not its outer indices, or it is no network of real tensors.
    """
    outer = tuple(network.outer_inds()) if modes is None else tuple(modes)
    if set(outer) != set(network.outer_inds()):
        raise ArgumentError("modes", f"are {outer}; the outer indices are {tuple(network.outer_inds())}")
    tensors = list(network.tensors)
    letters = {index: f"x{n}" for n, index in enumerate(dict.fromkeys(i for t in tensors for i in t.inds))}
    spec = NetworkSpec(
        "einsum",
        tuple(tuple(letters[index] for index in tensor.inds) for tensor in tensors),
        tuple(letters[index] for index in outer),
        tuple((letters[index], network.ind_size(index)) for index in letters),
        tuple(f"core_{k}" for k in range(len(tensors))),
    )
    cores = [torch.from_numpy(np.array(tensor.data)) for tensor in tensors]
    if any(not core.is_floating_point() for core in cores):
        raise ArgumentError("network", f"holds {cores[0].dtype}; its tensors must be real and floating")
    return TensorNetwork.holding(spec, cores, cores[0].dtype)
