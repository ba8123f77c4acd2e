"""How far predictions are from the values: RMSE, MAE and two R2, exact in float64 and over all ranks."""

from collections.abc import Callable

import torch
from torch import Tensor

SCORES = ("rmse", "mae", "r2", "r2_uncentred")

# A sum of squares this small beside the mean is rounding of a constant, not variance.
_ROUNDING = 8 * torch.finfo(torch.float64).eps


class FitMetric:
    """RMSE, MAE, centred and uncentred R2 of predictions, summed in float64.

    R2 is 1 - SSE / sum (y - mean)^2 with the mean of the very values judged; uncentred, 1 - SSE / sum y^2.
    The centred sum is taken around `centre` and corrected by (sum (y - centre))^2 / n: with a centre near the
    mean nothing cancels, unlike in sum y^2 - n mean^2.

    Args:
        centre: any number near the mean of the values; the result does not depend on it but by rounding.
        sum_over_ranks: sum of a tensor over the ranks that hold other values (`TaskContext.sum_over_ranks`).
        device: where the sums are kept.

    Collectives: `compute` calls `sum_over_ranks` once, on 6 float64; all ranks call it.

    Source: Chan, Golub, LeVeque 1983, "Algorithms for computing the sample variance", eq. (1.7).
    """

    def __init__(
        self,
        centre: float,
        sum_over_ranks: Callable[[Tensor], Tensor] = lambda sums: sums,
        device: torch.device | str = "cpu",
    ) -> None:
        self.centre = centre
        self._sum_over_ranks = sum_over_ranks
        self._sums = torch.zeros(6, dtype=torch.float64, device=device)

    def update(self, predictions: Tensor, values: Tensor) -> None:
        """Adds (B,) predictions and the values they should have met; B may be 0."""
        values = values.double()
        errors = predictions.double() - values
        centred = values - self.centre
        self._sums = self._sums + torch.stack(
            [
                torch.tensor(float(len(values)), dtype=torch.float64, device=values.device),
                errors.abs().sum(),
                errors.square().sum(),
                centred.sum(),
                centred.square().sum(),
                values.square().sum(),
            ]
        )

    def compute(self) -> dict[str, float | None]:
        """`rmse`, `mae` (unit of the values), `r2`, `r2_uncentred`, and the `count` of values over all ranks.

        An R2 is None where the values do not vary (uncentred: are all 0); all but `count` are None where
        there is no value.
        """
        count, abs_error, sq_error, offset, centred_sq, sq = self._sum_over_ranks(self._sums.clone()).tolist()
        if count == 0:
            return {"count": 0.0, **dict.fromkeys(SCORES)}
        total = centred_sq - offset * offset / count
        varies = total > count * (_ROUNDING * self.centre) ** 2
        return {
            "count": count,
            "rmse": (sq_error / count) ** 0.5,
            "mae": abs_error / count,
            "r2": 1 - sq_error / total if varies else None,
            "r2_uncentred": 1 - sq_error / sq if sq > 0 else None,
        }
