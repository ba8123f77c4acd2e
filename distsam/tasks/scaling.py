"""Between the values as given and the values as learnt."""

import math
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


@dataclass(frozen=True)
class Spread:
    """Of some values: how many, their mean, standard deviation, least and largest; zeros where there are none."""

    count: int = 0
    mean: float = 0.0
    std: float = 0.0
    low: float = 0.0
    high: float = 0.0

    @property
    def varies(self) -> bool:
        """False where the spread of the values is no more than the rounding of their mean."""
        return self.std > _ROUNDING * abs(self.mean)

    def joined(self, other: "Spread") -> "Spread":
        """The spread of the values of both together.

        Source: Chan, Golub, LeVeque 1983, "Algorithms for computing the sample variance", eq. (2.1).
        """
        if not (self.count and other.count):
            return self if self.count else other
        count = self.count + other.count
        apart, share = other.mean - self.mean, other.count / count
        variance = (1 - share) * self.std**2 + share * other.std**2 + share * (1 - share) * apart**2
        low, high = min(self.low, other.low), max(self.high, other.high)
        return Spread(count, self.mean + share * apart, math.sqrt(variance), low, high)


def spread_of(values: np.ndarray) -> Spread:
    """The spread of (N,) float64 values; N may be 0."""
    if not len(values):
        return Spread()
    found = (values.mean(), values.std(), values.min(), values.max())
    return Spread(len(values), *(float(number) for number in found))
