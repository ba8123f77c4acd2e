"""Who runs forward, backward and step? Native torch."""

from distsam.engine.engine import Engine
from distsam.engine.native import NativeEngine
from distsam.engine.schedule import SHAPES, Schedule
from distsam.engine.weights import model_tensors, parameters_among

__all__ = ["SHAPES", "Engine", "NativeEngine", "Schedule", "model_tensors", "parameters_among"]
