"""Networks that other packages keep: recognised by what their modules hold, so that none of them is imported."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from distsam.tensornet.core_network import CoreNetwork
from distsam.tensornet.spec import NetworkSpec


def lora_pairs(name: str, module: nn.Module) -> Iterator[CoreNetwork]:
    """The pair (B, A) of every adapter of a LoRA layer as the peft package makes it: "<module>.<adapter>".

    Linear layers keep their pairs in `lora_A` and `lora_B`, adapter -> a module with a weight; embeddings the
    parameters themselves in `lora_embedding_A` and `lora_embedding_B`.
    """
    for kind in ("lora_", "lora_embedding_"):
        a_of: Any = getattr(module, f"{kind}A", None)
        b_of: Any = getattr(module, f"{kind}B", None)
        if not isinstance(a_of, nn.ModuleDict | nn.ParameterDict) or type(a_of) is not type(b_of):
            continue
        for adapter in a_of:
            both: list[Any] = [b_of[adapter], a_of[adapter]]
            pair = [held if isinstance(held, nn.Parameter) else held.weight for held in both]
            path = f"{name}.{adapter}" if name else adapter
            yield CoreNetwork(path, tuple(pair), _pair_spec(pair), ("B", "A"))


def _pair_spec(pair: list[nn.Parameter]) -> NetworkSpec | None:
    """Of two matrices; a convolution's pair has more dims, and its B is 1 x 1."""
    b, a = pair
    if b.dim() != 2 or a.dim() != 2 or b.shape[1] > min(b.shape[0], a.shape[1]):
        return None
    sizes = (("o", b.shape[0]), ("r", b.shape[1]), ("i", a.shape[1]))
    return NetworkSpec("lora", (("o", "r"), ("r", "i")), ("o", "i"), sizes, ("B", "A"))


def factorized_tensor(name: str, module: nn.Module) -> Iterator[CoreNetwork]:
    """A factorized tensor of tensorly-torch: its weights, central core and factors are cores, as far as it has them."""
    kind = type(module)
    is_theirs = any(base.__module__.startswith("tltorch.factorized_tensors") for base in kind.__mro__)
    if not is_theirs or kind.__name__ in ("DenseTensor", "DenseTensorized") or kind.__module__.endswith("utils"):
        return
    parameters = dict(module.named_parameters())
    if len(parameters) > 1:
        yield CoreNetwork(name or "network", tuple(parameters.values()), None, tuple(parameters))
