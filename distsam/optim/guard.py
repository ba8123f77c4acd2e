"""The guard of a step: measures its passes, decides with all ranks whether it counts, keeps the counters."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from distsam.balance import BalanceCoordinator, FirstPass, Meter, SecondPass, StepRecord
from distsam.errors import TrainingDiverged
from distsam.tensornet import CoreNetwork

if TYPE_CHECKING:
    from distsam.optim.wrapper import Wrapper


class StepGuard:
    """Serves the outermost wrapper of a chain; see there for what it does.

    Args:
        owner: the wrapper whose step this guards.
        max_skipped: so many non-finite steps in a row raise TrainingDiverged.
    """

    def __init__(self, owner: "Wrapper", max_skipped: int) -> None:
        if max_skipped < 1:
            raise ValueError(f"max_skipped={max_skipped}: use at least 1")
        self.num_steps = self.num_skipped = self.num_in_a_row = 0
        self.wants_stop = self.stop_requested = False
        self._owner = owner
        self._max_skipped = max_skipped
        self._coordinator: BalanceCoordinator | None = None
        self._meter: Meter | None = None
        self._accepted = False

    @property
    def meter(self) -> Meter:
        """The meter over all parameters of the chain; built at the first step, when they are in their place."""
        if self._meter is None:
            params = [p for group in self._owner.param_groups for p in group["params"]]
            self._meter = Meter(params, self._networks())
        return self._meter

    @property
    def is_due(self) -> bool:
        """True if the step under way is one that the coordinator publishes."""
        return self._coordinator is not None and self._coordinator.is_due(self.num_steps + 1)

    def attach(self, coordinator: BalanceCoordinator) -> None:
        """Report every pass and step to `coordinator`."""
        self._coordinator = coordinator
        self._meter = None

    def forget_parameters(self) -> None:
        """The parameter list has changed: measure anew from the next step on."""
        self._meter = None

    def first_pass(self, loss: Tensor | float | None) -> tuple[FirstPass, list[Tensor | None]]:
        """Measure the pass at the current weights. Collectives: one, as in Meter.first_pass."""
        coordinator = self._coordinator
        wants_norms = any(w.networks for w in self._owner.chain())
        if coordinator is not None:
            wants_norms = wants_norms or coordinator.wants_norms(self.num_steps + 1)
        first, grads = self.meter.first_pass(loss, wants_norms, self.wants_stop)
        if coordinator is not None:
            coordinator.on_first_pass(first)
        return first, grads

    def second_pass(self, loss: Tensor | float | None, epsilon: Sequence[Tensor | None], factors: Tensor) -> SecondPass:
        """Measure the pass at the perturbed weights. Collectives: one, as in Meter.second_pass."""
        return self.meter.second_pass(loss, epsilon, factors if self.is_due else None)

    def accepts(self, first: FirstPass, second: SecondPass | None = None) -> bool:
        """True if every pass was finite on every rank. The one place of a step where the host reads a result.

        Raises:
            TrainingDiverged: too many skipped steps in a row, on all ranks together.
        """
        is_finite = first.is_finite if second is None else first.is_finite & second.is_finite
        self._accepted, self.stop_requested = torch.stack([is_finite, first.stops > 0]).tolist()
        self.num_skipped += not self._accepted
        self.num_in_a_row = 0 if self._accepted else self.num_in_a_row + 1
        return self._accepted

    def finish(self, first: FirstPass, second: SecondPass | None = None, radius: Tensor | None = None) -> None:
        """The step is over: count it, tell the coordinator, end a run that only skips.

        Raises:
            TrainingDiverged: too many skipped steps in a row, on all ranks together.
        """
        if self._coordinator is not None:
            growths = [w.growth for w in self._owner.chain() if w.growth is not None and self._accepted]
            record = StepRecord(
                step=self.num_steps + 1,
                first=first,
                second=second,
                radius=radius,
                growth=torch.stack(growths).sum(0) if growths else None,
                rates=core_rates(self._owner.param_groups, self.meter.cores) if self.is_due else (),
                num_skipped=self.num_skipped,
            )
            self._coordinator.on_step(record)
        self.num_steps += 1
        if self.num_in_a_row >= self._max_skipped:
            raise TrainingDiverged(
                f"step {self.num_steps}: the loss or a gradient was not finite in {self.num_in_a_row} steps in a "
                "row; the weights are those of the last good step; lower optim.lr, optim.rho or optim.alpha"
            )

    def counters(self) -> dict[str, int]:
        """What a checkpoint must keep."""
        return {
            "num_steps": self.num_steps,
            "num_skipped": self.num_skipped,
            "num_in_a_row": self.num_in_a_row,
        }

    def load_counters(self, counters: dict[str, int]) -> None:
        """Restore what `counters` gave."""
        self.num_steps = counters["num_steps"]
        self.num_skipped = counters["num_skipped"]
        self.num_in_a_row = counters["num_in_a_row"]

    def _networks(self) -> list[CoreNetwork]:
        """The coordinator's networks first (its numbers are read by position), then what the rescales add."""
        wanted = list(self._coordinator.networks) if self._coordinator is not None else []
        seen = {tuple(map(id, n.cores)) for n in wanted}
        for wrapper in self._owner.chain():
            for network in wrapper.networks:
                if tuple(map(id, network.cores)) not in seen:
                    seen.add(tuple(map(id, network.cores)))
                    wanted.append(network)
        return wanted


def core_rates(param_groups: Sequence[dict[str, Any]], cores: Sequence[nn.Parameter]) -> tuple[float, ...]:
    """The learning rate of each core's parameter group; 0 for a core that the optimizer does not move."""
    rates = {id(p): float(group["lr"]) for group in param_groups for p in group["params"]}
    return tuple(rates.get(id(core), 0.0) for core in cores)
