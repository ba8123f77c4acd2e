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
        self._num_params = 0
        self.is_inner = False
        self._accepted = False

    @property
    def meter(self) -> Meter:
        """The meter over all parameters of the chain; built at the first step, when they are in their place."""
        count = sum(len(group["params"]) for group in self._owner.param_groups)
        if self._meter is None or count != self._num_params:
            params = [p for group in self._owner.param_groups for p in group["params"]]
            self._meter, self._num_params = Meter(params, self._networks(params)), count
        return self._meter

    @property
    def is_due(self) -> bool:
        """True if the step under way is one that the coordinator publishes."""
        return self._coordinator is not None and self._coordinator.is_due(self.num_steps + 1)

    def attach(self, coordinator: BalanceCoordinator) -> None:
        """Report every pass and step to `coordinator`."""
        if self.is_inner:
            raise ValueError("this optimizer is wrapped by another: give the coordinator the outermost one")
        if self._coordinator is not None:
            raise ValueError("the optimizer has a coordinator already; one publishes for all networks of a model")
        self._coordinator = coordinator
        self._meter = None

    def wrap(self) -> None:
        """Another wrapper takes this one as its base and measures for it from now on.

        Raises:
            ValueError: a coordinator listens here already.
        """
        if self._coordinator is not None:
            raise ValueError("the base optimizer has a coordinator: give it to the outermost optimizer instead")
        self.is_inner = True

    def __getstate__(self) -> dict[str, Any]:
        # A copy has parameters of its own: its meter must be built from those.
        return {**self.__dict__, "_meter": None}

    def first_pass(self, loss: Tensor | float | None) -> tuple[FirstPass, list[Tensor | None]]:
        """Measure the pass at the current weights. Collectives: one, as in Meter.first_pass.

        Raises:
            RuntimeError: another optimizer wraps this one, and its step is the one to take.
        """
        if self.is_inner:
            raise RuntimeError("this optimizer is wrapped by another: call step of the outermost one")
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
        """True if every pass was finite on every rank. The one place of a step where the host reads a result."""
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
            self._coordinator.on_step(self._record(first, second, radius))
        self.num_steps += 1
        if self.num_in_a_row >= self._max_skipped:
            raise TrainingDiverged(
                f"step {self.num_steps}: the loss or a gradient was not finite in {self.num_in_a_row} steps in a "
                "row; the weights are the last finite ones, spoiled perhaps; lower optim.lr, optim.rho or optim.alpha"
            )

    def _record(self, first: FirstPass, second: SecondPass | None, radius: Tensor | None) -> StepRecord:
        chain = list(self._owner.chain())
        growths = [w.growth for w in chain if w.growth is not None and self._accepted]
        clipped = [w.clipped for w in chain if w.clipped is not None] if self.is_due else []
        is_known = self.is_due and self._accepted
        return StepRecord(
            step=self.num_steps + 1,
            first=first,
            second=second,
            radius=radius,
            growth=torch.stack(growths).sum(0) if growths else None,
            rates=core_rates(self._owner.param_groups, self.meter.cores) if is_known else None,
            num_skipped=self.num_skipped,
            clipped=torch.stack(clipped).sum(0) if clipped else None,
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

    def _networks(self, params: Sequence[nn.Parameter]) -> list[CoreNetwork]:
        """The coordinator's networks first (its numbers are read by position), then what the wrappers add.

        Raises:
            ValueError: a wrapper's network has no core among `params`, so that it would do nothing for ever.
        """
        wanted = list(self._coordinator.networks) if self._coordinator is not None else []
        seen = {tuple(map(id, n.cores)) for n in wanted}
        moved = {id(p) for p in params}
        for network in (n for wrapper in self._owner.chain() for n in wrapper.networks):
            key = tuple(map(id, network.cores))
            if moved.isdisjoint(key):
                raise ValueError(
                    f"network {network.name!r}: none of its cores is in the optimizer; take core_networks(model) and "
                    "build the optimizer after the model was sharded"
                )
            if key not in seen:
                seen.add(key)
                wanted.append(network)
        return wanted


def core_rates(param_groups: Sequence[dict[str, Any]], cores: Sequence[nn.Parameter]) -> Tensor:
    """(N,) float64 learning rates of each core's parameter group; 0 for a core that the optimizer does not move, or
    frozen. On the host, or, so that nothing waits, on the accelerator where one of them lives there.
    """
    rates = {id(p): group["lr"] for group in param_groups for p in group["params"] if p.requires_grad}
    found = [rates.get(id(core), 0.0) for core in cores]
    devices = {r.device for r in found if isinstance(r, Tensor) and r.device.type != "cpu"}
    if not devices:
        return torch.tensor([float(r) for r in found], dtype=torch.float64)
    here = torch.zeros(len(found), dtype=torch.float64, device=devices.pop())
    for place, rate in zip(here, found, strict=True):
        place += rate.detach() if isinstance(rate, Tensor) else rate
    return here
