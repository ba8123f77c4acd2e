"""Between the values as given and the values as learnt."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

# A spread this small beside the mean is rounding of a constant.
_ROUNDING = 8 * float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Scaling:
    """The affine map between values as given and values as learnt: given = mean + std * learnt; std > 0."""

    mean: float = 0.0
    std: float = 1.0

    def learnt(self, given: np.ndarray) -> np.ndarray:
        """Values as learnt."""
        return (given - self.mean) / self.std

    def given(self, learnt: Tensor) -> Tensor:
        """Values as given, in float64: in float32 a large mean would swallow what is added to it."""
        return learnt.double() * self.std + self.mean


def mean_and_std(values: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation; the latter 1 where values are constant, so that dividing by it does no harm."""
    mean, std = float(values.mean()), float(values.std())
    return mean, std if varies(values) else 1.0


def varies(values: np.ndarray) -> bool:
    """False where the spread of the values is no more than the rounding of their mean."""
    return float(values.std()) > _ROUNDING * abs(float(values.mean()))
