"""How well classes are predicted: accuracy, top-5, calibration and cross entropy, over all ranks."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

COLUMNS = ("accuracy", "top5", "ece", "cross_entropy")
NUM_BINS = 15


class ClassMetric:
    """Scores of predicted classes, summed in float64.

    Args:
        num_classes: C; of five or fewer every prediction is among the first five, and top5 is None.
        sum_over_ranks: sum of a tensor over the ranks that hold other examples (`TaskContext.sum_over_ranks`).
        device: where the sums are kept.

    Collectives: `compute` calls `sum_over_ranks` once, on 4 + 3 * 15 float64; all ranks call it.

    Source: expected calibration error in 15 bins of equal width: Guo et al. 2017, arXiv:1706.04599, eq. (3).
    """

    def __init__(
        self, num_classes: int, sum_over_ranks: Callable[[Tensor], Tensor], device: torch.device | str = "cpu"
    ) -> None:
        self.num_classes, self._sum_over_ranks = num_classes, sum_over_ranks
        self._sums = torch.zeros(4, dtype=torch.float64, device=device)
        # Per bin: number of examples, of right ones, sum of confidences.
        self._bins = torch.zeros(3, NUM_BINS, dtype=torch.float64, device=device)

    def update(self, logits: Tensor, classes: Tensor) -> None:
        """Adds (B, C) logits and the (B,) classes that they should have met; B may be 0."""
        if not len(classes):
            return
        logits = logits.double()
        confidences, predicted = logits.softmax(1).max(1)
        is_right = (predicted == classes).double()
        among_five = (logits.topk(min(5, self.num_classes), 1).indices == classes.unsqueeze(1)).any(1).double()
        loss = cross_entropy(logits, classes, reduction="sum")
        count = torch.full_like(loss, float(len(classes)))
        self._sums = self._sums + torch.stack([count, is_right.sum(), among_five.sum(), loss])
        # A confidence of nan, of a model that diverged, is in no bin: ece is then nan by the sums.
        place = (confidences.nan_to_num(0) * NUM_BINS).long().clamp(max=NUM_BINS - 1)
        added = torch.stack([torch.ones_like(is_right), is_right, confidences])
        self._bins = self._bins.index_add(1, place, added)

    def compute(self) -> dict[str, float | None]:
        """`accuracy`, `top5`, `ece` (0 to 1) and `cross_entropy` (nats); all None where there is no example."""
        sums = self._sum_over_ranks(torch.cat([self._sums, self._bins.flatten()]))
        count, right, among_five, loss = sums[:4].tolist()
        if count == 0:
            return dict.fromkeys(COLUMNS)
        _, correct, confidence = sums[4:].reshape(3, NUM_BINS)
        ece = float((correct - confidence).abs().sum()) / count
        top5 = among_five / count if self.num_classes > 5 else None
        return {"accuracy": right / count, "top5": top5, "ece": ece, "cross_entropy": loss / count}
