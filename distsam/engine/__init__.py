"""Who runs forward, backward and step? Native torch."""

from distsam.engine.native import NativeEngine

__all__ = ["NativeEngine"]
