"""BAR: every core scaled up or down by the same relative amount.

Legend: s_k = ||G_k||^2, g_k its gradient, gamma_k = ||g_k||^2, eta learning rate, K cores of a network.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from distsam.balance import FirstPass
from distsam.optim.rescale import Rescaling
from distsam.optim.table import NetworkTable, Number, Rows
from distsam.tensornet import CoreNetwork

RULES = ("nbar", "obar")
# What sums over shards leave of a difference between equal norms depends on the number of ranks: a few times 1e-16 per
# rank, since they are summed in float64. Below this it is a tie. float32 cores that were drawn with equal norms differ
# by their own rounding, 1e-8, alike on every number of ranks: that is a difference.
TIE = 1e-12


class SignRule:
    """alpha times the sign of gamma_k - mean gamma ("nbar") or of mean s - s_k ("obar"); 0 for a tie."""

    name = "bar"

    def __init__(self, rule: str) -> None:
        self.rule = rule

    def growth(self, first: FirstPass, table: NetworkTable, alpha: Number | Rows, rate: Number | Rows) -> Rows:
        """Relative change of each core per learning rate."""
        gamma, s = first.of_all_cores()
        is_nbar = self.rule == "nbar"
        compared = table.fold(gamma if is_nbar else s)
        up = 1.0 if is_nbar else -1.0

        def signed(value: Any, mean: Any, strength: Any) -> Any:
            away = value - mean
            # The sign, by operators alone and in float64: of a tensor a bool times a float would be float32.
            return (abs(away) > TIE * abs(value)) * (away / abs(away)) * up * strength

        # Exactly the mean: 0 / 0.
        return table.finite(table.each(signed, compared, table.row_mean(compared), alpha))

    def counts(self) -> Mapping[str, Tensor | int]:
        """Nothing."""
        return {}

    def load_counts(self, counts: Mapping[str, int]) -> None:
        """Nothing."""


class BAR(Rescaling):
    """Balancedness-aware regularisation: every core is scaled up or down by the same relative amount.

    "nbar": core k by 1 + alpha eta sign(gamma_k - mean gamma); "obar": core k by 1 - alpha eta sign(s_k - mean s); then
    the base step. For K = 2 these are the published rules, except that a tie changes nothing; K > 2 is ours.

    Args:
        base_optimizer: any torch optimizer, or DAS.
        networks: from `core_networks(model)`, after the model was sharded.
        alpha: strength; alpha times the learning rate is the relative change of a core in a step. Of parameter groups
            that do not give their own, see Rescaling.
        rule: "nbar" compares gradient norms, "obar" core norms.
        max_skipped: so many non-finite steps in a row raise TrainingDiverged.

    Collectives: one all_reduce of P + N + 2 float64 per step, P parameters, N cores; every rank calls step.

    Source: arXiv:2410.14802, Algorithms 2 (nBAR) and 3 (oBAR).
    """

    def __init__(
        self,
        base_optimizer: Optimizer,
        networks: Iterable[CoreNetwork],
        *,
        alpha: float,
        rule: str = "nbar",
        max_skipped: int = 10,
    ) -> None:
        if rule not in RULES:
            raise ValueError(f"rule={rule!r}: use one of {', '.join(RULES)}")
        super().__init__(base_optimizer, networks, SignRule(rule), alpha, max_skipped)
        self.rule = rule
