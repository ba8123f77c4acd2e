"""Counts the collectives and bytes that any code in a block issues: c10d calls, DTensor and FSDP2 ones alike."""

from collections import Counter
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

NAMESPACES = ("c10d", "_c10d_functional", "_dtensor")
NO_COLLECTIVE = ("wait_tensor", "_wrap_tensor_autograd")


class CollectiveCount(TorchDispatchMode):
    """`calls` and `largest_bytes` by operator name."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.sizes: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(t is DTensor for t in types):
            return NotImplemented  # DTensor takes itself apart first; its local calls come back here
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        if func.namespace in NAMESPACES and name not in NO_COLLECTIVE:
            leaves = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)]
            self.calls[name] += 1
            self.sizes.append((name, max((t.numel() * t.element_size() for t in leaves), default=0)))
        return out
