"""Who runs forward, backward and step? Native torch."""

from distsam.engine.engine import Engine
from distsam.engine.native import NativeEngine
from distsam.engine.schedule import SHAPES, Schedule
from distsam.engine.weights import frozen_parameters, model_tensors, parameters_among

__all__ = ["SHAPES", "Engine", "NativeEngine", "Schedule", "frozen_parameters", "model_tensors", "parameters_among"]
