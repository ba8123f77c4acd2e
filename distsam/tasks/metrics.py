"""How far predictions are from the values: RMSE, MAE and two R2, exact in float64 and over all ranks."""

import torch
from torch import Tensor
from torchmetrics import Metric

SCORES = ("rmse", "mae", "r2", "r2_uncentred")

# A sum of squares this small beside the mean is rounding of a constant, not variance.
_ROUNDING = 8 * torch.finfo(torch.float64).eps


class FitMetric(Metric):
    """RMSE, MAE, centred and uncentred R2 of predictions, summed in float64.

    R2 is 1 - SSE / sum (y - mean)^2 with the mean of the very values judged; uncentred, 1 - SSE / sum y^2.
    The centred sum is taken around `centre` and corrected by (sum (y - centre))^2 / n: with a centre near the
    mean nothing cancels, unlike in sum y^2 - n mean^2. torchmetrics' own R2Score does the latter, in float32,
    and calls every sum below 1e-4 zero.

    Args:
        centre: any number near the mean of the values; the result does not depend on it but by rounding.
        sync: whether `compute` sums over the ranks of the default process group.

    Collectives: `compute` gathers 6 float64 from every rank (if `sync`); all ranks call it, each after at
        least one `update`, which may be of no entries.

    Source: Chan, Golub, LeVeque 1983, "Algorithms for computing the sample variance", eq. (1.7).
    """

    full_state_update = False
    sums: Tensor

    def __init__(self, centre: float, *, sync: bool) -> None:
        super().__init__(sync_on_compute=sync)
        self.centre = centre
        self.add_state("sums", default=torch.zeros(6, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, predictions: Tensor, values: Tensor) -> None:
        """Adds (B,) predictions and the values they should have met; B may be 0."""
        values = values.double()
        errors = predictions.double() - values
        centred = values - self.centre
        self.sums = self.sums + torch.stack(
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
        count, abs_error, sq_error, offset, centred_sq, sq = self.sums.tolist()
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
