"""The guard of a step: measures its passes, decides with all ranks whether the step counts, keeps the counts."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from distsam.balance import BalanceCoordinator, FirstPass, Meter, SecondPass, StepRecord
from distsam.balance.meter import Gradients, MakePieces, Probe
from distsam.errors import InputError, TrainingDiverged
from distsam.optim.groups import core_rates
from distsam.sharding import LocalPieces, Pieces, are_finite
from distsam.tensornet import CoreNetwork


class Link(Protocol):
    """What the guard asks of each optimizer of a chain."""

    @property
    def networks(self) -> tuple[CoreNetwork, ...]: ...

    @property
    def growth(self) -> Tensor | None: ...

    def own_counters(self) -> Mapping[str, Tensor | int]: ...


class Chain(Protocol):
    """What the guard asks of the outermost optimizer, whose steps it guards."""

    @property
    def param_groups(self) -> list[dict[str, Any]]: ...

    def chain(self) -> Iterable[Link]: ...


class StepGuard:
    """What the optimizers of a chain share in a step; the outermost one's guard is the one at work.

    Args:
        owner: the optimizer whose steps this guards.
        max_skipped: so many non-finite steps in a row raise TrainingDiverged.

    Attributes:
        num_steps, num_skipped, num_in_a_row: steps taken; how many of them were skipped; how many just now, in a row.
        wants_stop: this rank wants the run to end; stop_requested: some rank does, as all learnt in the last step.
        clip_norm: bound on the norm of the gradient that the base optimizer gets; None for none.
        is_inner: another optimizer wraps this one and measures in its place.
    """

    def __init__(self, owner: Chain, max_skipped: int) -> None:
        if max_skipped < 1:
            raise ValueError(f"max_skipped={max_skipped}: use at least 1")
        self.num_steps = self.num_skipped = self.num_in_a_row = 0
        self.wants_stop = self.stop_requested = False
        self.clip_norm: float | None = None
        self.is_inner = False
        self._owner = owner
        self._max_skipped = max_skipped
        self._coordinator: BalanceCoordinator | None = None
        self._make_pieces: MakePieces = LocalPieces
        self._meter: Meter | None = None
        self._ids: list[int] = []
        self._needs_norms = False
        self._accepted = False
        self._clip_factor: Tensor | None = None

    @property
    def meter(self) -> Meter:
        """The meter over all parameters of the chain; built at the first step, when they are in their place."""
        ids = [id(p) for group in self._owner.param_groups for p in group["params"]]
        # Parameters may be added, and replaced: where a rank grows, or weights are pruned.
        if self._meter is None or ids != self._ids:
            params = self._params()
            self._meter, self._ids = Meter(params, self._networks(params), self._make_pieces), ids
            self._needs_norms = any(link.networks for link in self._owner.chain())
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
        coordinator.use_pieces(self._make_pieces)

    def use_pieces(self, make_pieces: MakePieces) -> None:
        """Reach weights and gradients by `make_pieces` from the next step on."""
        self._make_pieces = make_pieces
        self._meter = None
        if self._coordinator is not None:
            self._coordinator.use_pieces(make_pieces)

    def wrap(self) -> None:
        """Another optimizer takes this one as its base and measures for it from now on.

        Raises:
            ValueError: a coordinator listens here already, or a bound on the gradient was set here.
        """
        if self._coordinator is not None:
            raise ValueError("the base optimizer has a coordinator: give it to the outermost optimizer instead")
        if self.clip_norm is not None:
            raise ValueError("the base optimizer has a clip_norm: set it on the outermost optimizer instead")
        self.is_inner = True

    def __getstate__(self) -> dict[str, Any]:
        # A copy has parameters of its own: its meter must be built from those.
        return {**self.__dict__, "_meter": None}

    def discard(self) -> None:
        """Forget a pass that raised on every rank."""
        pieces: Pieces | None = None if self._meter is None else self._meter.pieces
        if pieces is None:
            params = self._params()
            pieces = self._make_pieces(params, [True] * len(params))
        pieces.discard()

    def first_pass(
        self, loss: Tensor | float | None, probe: Probe | None = None
    ) -> tuple[FirstPass, list[Tensor | None]]:
        """Measure the pass at the current weights, under no_grad. Collectives: one, as in Meter.first_pass.

        Raises:
            RuntimeError: another optimizer wraps this one, and its step is the one to take.
        """
        if self.is_inner:
            raise RuntimeError("this optimizer is wrapped by another: call step of the outermost one")
        coordinator, meter = self._coordinator, self.meter
        wants_norms = self._needs_norms or (coordinator is not None and coordinator.wants_norms(self.num_steps + 1))
        first, grads = meter.first_pass(loss, wants_norms, self.wants_stop, probe)
        if coordinator is not None:
            coordinator.on_first_pass(first)
        return first, grads

    def second_pass(
        self, loss: Tensor | float | None, epsilon: tuple[Gradients, float | Tensor], probe: Probe | None = None
    ) -> tuple[SecondPass, list[Tensor | None]]:
        """Measure the pass at the perturbed weights, under no_grad. Collectives: one, as in Meter.second_pass."""
        return self.meter.second_pass(loss, epsilon if self.is_due else None, probe)

    def accepts(self, first: FirstPass, second: SecondPass | None = None) -> bool:
        """True if every pass was finite on every rank. The one place of a step where the host reads a result."""
        passes = [first] if second is None else [first, second]
        if first.is_on_cpu:
            numbers = [p.on_host for p in passes]
        else:
            numbers = torch.stack([p.on_device for p in passes]).tolist()
        # Squares of norms and losses: a sum with one NaN or infinity in it shows it.
        self._accepted = math.isfinite(sum([total + loss for total, loss, _ in numbers]))
        self.stop_requested = numbers[0][2] > 0
        if self._accepted:
            self.num_in_a_row = 0
        else:
            self.num_skipped += 1
            self.num_in_a_row += 1
        return self._accepted

    def clip(self, grads: Sequence[Tensor | None], norm_sq: Tensor) -> None:
        """Scale the gradients down in place to `clip_norm`, by the formula of torch.nn.utils.clip_grad_norm_.

        Call it under no_grad.

        Args:
            grads: what the base optimizer is about to get.
            norm_sq: () float64 its squared norm over all parameters and ranks.
        """
        assert self.clip_norm is not None
        self._clip_factor = (self.clip_norm / (norm_sq.sqrt() + 1e-6)).clamp_(max=1.0)
        moved = [g for g in grads if g is not None]
        if self._clip_factor.device.type != "cpu":
            torch._foreach_mul_(moved, self._clip_factor)
        elif (factor := self._clip_factor.item()) < 1:
            torch._foreach_mul_(moved, factor)

    def finish(
        self,
        first: FirstPass,
        second: SecondPass | None = None,
        radius: Tensor | None = None,
        is_combined: bool = False,
    ) -> None:
        """The step is over: count it, tell the coordinator, end a run that only skips.

        Args:
            first, second: its passes.
            radius: (N,) the factor of each core's gradient in its perturbation; None where it is not along that.
            is_combined: the base stepped along something else than the last pass's gradient.

        Raises:
            TrainingDiverged: too many skipped steps in a row, on all ranks together.
        """
        if self._coordinator is not None:
            self._coordinator.on_step(self._record(first, second, radius, is_combined))
        self.num_steps += 1
        if self.num_in_a_row >= self._max_skipped:
            # Whoever goes on from here, with other values, starts a new count: else the next step would end it.
            num_in_a_row, self.num_in_a_row = self.num_in_a_row, 0
            # A step whose gradients are finite can still take the weights out of their dtype.
            is_kept = are_finite(self.meter.pieces.weights())
            kept = "those of the last step that was finite, and may be far off already"
            raise TrainingDiverged(
                f"step {self.num_steps}: the loss or a gradient was not finite in {num_in_a_row} steps in a row. "
                f"The weights are {kept if is_kept else 'not finite any more'}; lower the "
                "learning rate, rho or alpha"
            )

    def _record(
        self, first: FirstPass, second: SecondPass | None, radius: Tensor | None, is_combined: bool
    ) -> StepRecord:
        chain = list(self._owner.chain())
        is_due = self.is_due
        growths = [link.growth for link in chain if link.growth is not None] if is_due and self._accepted else []
        return StepRecord(
            step=self.num_steps + 1,
            first=first,
            second=second,
            radius=radius,
            growth=torch.stack(growths).sum(0) if growths else None,
            rates=core_rates(self._owner.param_groups, self.meter.cores) if is_due and self._accepted else None,
            num_skipped=self.num_skipped,
            clip_factor=None if self.clip_norm is None else self._clip_factor,
            is_combined=is_combined,
            counters={name: n for link in chain for name, n in link.own_counters().items()} if is_due else {},
        )

    def counters(self) -> dict[str, int]:
        """What a checkpoint must keep."""
        return {
            "num_steps": self.num_steps,
            "num_skipped": self.num_skipped,
            "num_in_a_row": self.num_in_a_row,
        }

    def load_counters(self, counters: Mapping[str, int]) -> None:
        """Restore what `counters` gave."""
        self.num_steps = counters["num_steps"]
        self.num_skipped = counters["num_skipped"]
        self.num_in_a_row = counters["num_in_a_row"]

    def _params(self) -> list[nn.Parameter]:
        return [p for group in self._owner.param_groups for p in group["params"]]

    def _networks(self, params: Sequence[nn.Parameter]) -> list[CoreNetwork]:
        """The coordinator's networks first (its numbers are read by position), then what the optimizers add.

        Raises:
            ValueError: an optimizer's network has no core among `params`, so that it would do nothing for ever.
        """
        wanted = list(self._coordinator.networks) if self._coordinator is not None else []
        seen = {tuple(map(id, n.cores)) for n in wanted}
        moved = {id(p) for p in params}
        for network in (n for link in self._owner.chain() for n in link.networks):
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


def check_any(grads: Gradients) -> None:
    """InputError where a step that counts has no gradient at all; on all ranks, where they are averaged or sharded."""
    if all(grad is None for grad in grads):
        raise InputError(
            "no parameter of the optimizer has a gradient: each pass must run backward on a loss that depends on them, "
            "and they must not be frozen (requires_grad=False)"
        )
