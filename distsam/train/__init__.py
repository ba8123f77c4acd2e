"""What is one run? Config, build, loop, checkpoint, tracking."""

from importlib import import_module
from typing import Any

_PUBLIC = {
    "load_config": "distsam.train.config_file",
    "run_training": "distsam.train.run",
    "evaluate_run": "distsam.train.saved_run",
    "export_run": "distsam.train.predictions",
    "predict_run": "distsam.train.predictions",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'distsam.train' has no attribute '{name}'")
