"""What computed the numbers of a run, and what gave its data."""

import platform
from importlib import metadata

import torch

import distsam


def versions() -> dict[str, str]:
    """Name -> version, of Python and of the libraries on which a run's numbers depend."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "distsam": distsam.__version__,
        **{name: metadata.version(name) for name in ("numpy", "tensorly")},
    }
