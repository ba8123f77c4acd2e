"""The keys of engines, and how each is built."""

from typing import Any

from distsam.train.seams import Section


class NativeKeys(Section):
    """engine: native takes no keys of its own."""


def build_native(model: Any, optimizer: Any, **settings: Any) -> Any:
    """Plain torch."""
    from distsam.engine import NativeEngine

    return NativeEngine(model, optimizer, **settings)
