"""An optimizer around an optimizer: shared groups and state, one guarded step, composition by `apply`."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from distsam.balance import BalanceCoordinator, FirstPass
from distsam.optim.guard import StepGuard
from distsam.sharding import discard_pass
from distsam.tensornet import CoreNetwork

Closure = Callable[[], Tensor | float]


class Wrapper(Optimizer):
    """What every optimizer of distsam shares: it moves nothing itself that its base does not move.

    `param_groups`, `state`, `state_dict` are those of the base, so learning-rate schedules and checkpoints see
    one optimizer. Each step's passes are measured once, by the outermost wrapper; the inner ones read that.

    Args:
        base_optimizer: any torch optimizer that steps without a closure, or another wrapper of distsam.
        max_skipped: so many non-finite steps in a row raise TrainingDiverged.
    """

    def __init__(self, base_optimizer: Optimizer, max_skipped: int = 10) -> None:
        if not isinstance(base_optimizer, Optimizer):
            raise TypeError(f"base_optimizer={base_optimizer!r}: pass a built torch optimizer, not its class")
        if isinstance(base_optimizer, torch.optim.LBFGS):
            raise TypeError("base_optimizer=LBFGS: it evaluates its closure itself; use a first-order optimizer")
        if isinstance(base_optimizer, Wrapper) and not isinstance(base_optimizer, OnePass):
            raise TypeError("SAM inside another optimizer: put SAM outermost, as SAM(DAS(base))")
        _check_groups(base_optimizer.param_groups)
        self.base = base_optimizer
        # Not Optimizer.__init__: it would give this object groups and a state of its own.
        self.__setstate__({"defaults": base_optimizer.defaults})
        self.guard = StepGuard(self, max_skipped)
        if isinstance(base_optimizer, Wrapper):
            base_optimizer.guard.wrap()

    clip_norm: float | None = None

    @property
    def name(self) -> str:
        """One word, under which checkpoints keep its own state."""
        return type(self).__name__.lower()

    @property
    def own_state(self) -> dict[nn.Parameter, dict[str, Tensor]]:
        """Parameter -> key -> tensor of this wrapper itself; nothing for most."""
        return {}

    @abstractmethod
    def apply(self, first: FirstPass) -> None:
        """Move the weights once, by the gradients in place and what the first pass measured.

        Every rank calls it, or none: the guard has seen that the step is finite everywhere.
        """

    @property
    def networks(self) -> tuple[CoreNetwork, ...]:
        """The networks that this wrapper itself rescales; none for most."""
        return ()

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The base's parameter groups: the same objects."""
        return self.base.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """The base's state: the same object."""
        return self.base.state

    @property
    def base_optimizer(self) -> Optimizer:
        """The innermost torch optimizer, the one that holds state."""
        return self.base.base_optimizer if isinstance(self.base, Wrapper) else self.base

    def chain(self) -> Iterator["Wrapper"]:
        """This wrapper and those inside it, outermost first."""
        yield self
        if isinstance(self.base, Wrapper):
            yield from self.base.chain()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base; it is measured from the next step on."""
        _check_groups([param_group])
        self.base.add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        # Optimizer's own keeps groups and state alone; here those are the base's. A schedule has put a `step` here that
        # is tied to this object.
        return {name: value for name, value in self.__dict__.items() if name != "step"}

    def state_dict(self) -> dict[str, Any]:
        """The base's state dict. Counters are apart: see `counters`."""
        return self.base.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the base's state dict."""
        self.base.load_state_dict(state_dict)

    def evaluate(self, closure: Closure) -> Tensor | float:
        """Run `closure` with gradients on; its loss, detached. One that raises on all ranks leaves no half-done pass
        behind; where the plan is "fsdp" and it raises in backward, from torch 2.13 on.

        Raises:
            ValueError: it returned None.
        """
        try:
            with torch.enable_grad():
                loss = closure()
        except BaseException:
            discard_pass(p for group in self.param_groups for p in group["params"])
            raise
        if loss is None:
            raise ValueError("closure returned None: it must zero the gradients, run backward and return the loss")
        return loss.detach() if isinstance(loss, Tensor) else loss

    def attach(self, coordinator: BalanceCoordinator) -> None:
        """Report every pass and step to `coordinator`."""
        self.guard.attach(coordinator)

    @property
    def num_steps(self) -> int:
        """How many steps were taken, skipped ones included."""
        return self.guard.num_steps

    @property
    def num_skipped(self) -> int:
        """How many steps were skipped because a loss or gradient was not finite on some rank."""
        return self.guard.num_skipped

    @property
    def stop_requested(self) -> bool:
        """True, on all ranks after the same step, once any rank has called `request_stop`."""
        return self.guard.stop_requested

    def request_stop(self) -> None:
        """This rank wants the run to end; all ranks learn it in their next step."""
        self.guard.wants_stop = True

    def counters(self) -> dict[str, int]:
        """What a checkpoint must keep beside the base's state."""
        return {**self.guard.counters(), "num_clipped": self.num_clipped_in_chain}

    def load_counters(self, counters: dict[str, int]) -> None:
        """Restore what `counters` gave."""
        self.guard.load_counters(counters)
        for wrapper in self.chain():
            wrapper.restore_clipped(counters["num_clipped"] - self.num_clipped_in_chain)

    @property
    def clipped(self) -> Tensor | None:
        """() int64 on the device: how many times a rescale of this wrapper hit its bound; None if it has none."""
        return None

    @property
    def num_clipped(self) -> int:
        """The same on the host."""
        return 0

    @property
    def num_clipped_in_chain(self) -> int:
        """The same of this wrapper and those inside it."""
        return sum(wrapper.num_clipped for wrapper in self.chain())

    def restore_clipped(self, count: int) -> None:
        """Add what an earlier part of the run counted; only a wrapper that has a bound counts."""

    @property
    def growth(self) -> Tensor | None:
        """(N,) float64 relative change of each measured core by the last rescale, per learning rate; or None."""
        return None


class OnePass(Wrapper):
    """A wrapper whose step needs one gradient."""

    def step(self, closure: Closure | None = None) -> Tensor | float | None:  # type: ignore[override]
        """One step: measure the pass, skip together if any rank is not finite, else move the weights.

        Args:
            closure: zeroes the gradients, runs forward and backward, returns the loss. Without one, the gradients
                in place are used and the loss is unknown.

        Returns:
            What the closure returned: this rank's loss.

        Collectives: one all_reduce of at most 2 N + 3 float64, N cores; every rank calls it.

        Raises:
            TrainingDiverged: too many skipped steps in a row.
        """
        loss = None if closure is None else self.evaluate(closure)
        first, _ = self.guard.first_pass(loss)
        if self.guard.accepts(first):
            self.apply(first)
        self.guard.finish(first)
        return loss


class Plain(OnePass):
    """The base optimizer, measured and guarded: what SAM and its kin are compared with.

    One gradient and one small collective a step.
    """

    def apply(self, first: FirstPass) -> None:
        """The base's step."""
        descend(self.base, first)


def _check_groups(param_groups: Iterable[dict[str, Any]]) -> None:
    if any(group.get("maximize") for group in param_groups):
        raise ValueError("maximize=True: sharpness is that of a loss; minimise the negative of what is to grow")


def descend(base: Optimizer, first: FirstPass) -> None:
    """Let `base` move the weights: a wrapper by what was measured, a torch optimizer by its step."""
    if isinstance(base, Wrapper):
        base.apply(first)
    else:
        base.step()
