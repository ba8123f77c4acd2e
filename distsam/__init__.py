"""Distributed sharpness-aware training of sharded tensor networks, with the norm deviation of their cores."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Public name -> module that defines it. Resolved on first use, so that `distsam --help` imports no torch.
_PUBLIC = {
    "NetworkSpec": "distsam.tensornet",
    "TensorNetwork": "distsam.tensornet",
    "CoreNetwork": "distsam.tensornet",
    "core_networks": "distsam.tensornet",
    "mark_network": "distsam.tensornet",
    "TensorizedLinear": "distsam.tensornet.layers",
    "TensorizedEmbedding": "distsam.tensornet.layers",
    "TensorizedEmbeddingBag": "distsam.tensornet.layers",
    "TensorizedConv1d": "distsam.tensornet.layers",
    "TensorizedConv2d": "distsam.tensornet.layers",
    "TensorizedConv3d": "distsam.tensornet.layers",
    "TensorizedAdapter": "distsam.tensornet.adapters",
    "add_adapters": "distsam.tensornet.adapters",
    "adapter_state": "distsam.tensornet.adapters",
    "remove_adapters": "distsam.tensornet.adapters",
    "tensorize": "distsam.tensornet.tensorize",
    "save_tensorized": "distsam.tensornet.exchange",
    "load_tensorized": "distsam.tensornet.exchange",
    "save_onnx": "distsam.tensornet.exchange",
    "to_quimb": "distsam.tensornet.exchange",
    "from_quimb": "distsam.tensornet.exchange",
    "densify": "distsam.tensornet.tensorize",
    "cp": "distsam.tensornet",
    "tucker": "distsam.tensornet",
    "tt": "distsam.tensornet",
    "tt_matrix": "distsam.tensornet",
    "tr": "distsam.tensornet",
    "einsum_network": "distsam.tensornet",
    "ShardPlan": "distsam.sharding",
    "shard": "distsam.sharding",
    "norm_deviation": "distsam.balance",
    "BalanceCoordinator": "distsam.balance",
    "ALS": "distsam.optim",
    "SAM": "distsam.optim",
    "DAS": "distsam.optim",
    "BAR": "distsam.optim",
    "Goal": "distsam.tasks.task",
    "TaskContext": "distsam.tasks.task",
    "load": "distsam.train.loaded",
    "complete": "distsam.train.complete",
    "InputError": "distsam.errors",
    "TrainingDiverged": "distsam.errors",
}

__all__ = ["__version__", *sorted(_PUBLIC)]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'distsam' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
