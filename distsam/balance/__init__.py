"""What do the core norms say? Fused measurement, norm deviation and its laws, the coordinator."""

from distsam.balance.coordinator import BalanceCoordinator, Snapshot, StepRecord
from distsam.balance.dynamics import (
    covariance,
    deviation_rate,
    max_over_min,
    norm_deviation,
    relative_deviation,
)
from distsam.balance.meter import FirstPass, Meter, SecondPass

__all__ = [
    "BalanceCoordinator",
    "FirstPass",
    "Meter",
    "SecondPass",
    "Snapshot",
    "StepRecord",
    "covariance",
    "deviation_rate",
    "max_over_min",
    "norm_deviation",
    "relative_deviation",
]
