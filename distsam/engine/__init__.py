"""Who runs forward, backward and step? Native torch."""

from distsam.engine.engine import Engine
from distsam.engine.native import NativeEngine
from distsam.engine.schedule import SHAPES, Schedule

__all__ = ["SHAPES", "Engine", "NativeEngine", "Schedule"]
