"""An optimizer around an optimizer: shared groups and state, one guarded step, composition by `apply`."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from distsam.balance import BalanceCoordinator, FirstPass
from distsam.balance.meter import MakePieces
from distsam.errors import TrainingDiverged
from distsam.optim.groups import GroupKey, own_keys
from distsam.optim.guard import StepGuard, check_any
from distsam.optim.piecewise import step_base
from distsam.sharding import Pieces, local_tensor
from distsam.tensornet import CoreNetwork

Closure = Callable[[], Tensor | float]


class Wrapper(Optimizer):
    """What every optimizer of distsam shares: it moves nothing itself that its base does not move.

    `param_groups`, `state`, `state_dict` are those of the base, so learning-rate schedules and checkpoints see
    one optimizer. Each step's passes are measured once, by the outermost wrapper; the inner ones read that.

    Args:
        base_optimizer: any torch optimizer that steps without a closure, or another wrapper of distsam.
        max_skipped: so many non-finite steps in a row raise TrainingDiverged.
        name: what its counters and state are named by; a number is added where one inside has that name.

    Attributes:
        base: the optimizer that this one wraps.
        own_state: parameter -> name -> tensor placed like the parameter: what a checkpoint must keep of this wrapper
            itself. Not in the base's state, where some optimizers stumble over a foreign key.
    """

    def __init__(self, base_optimizer: Optimizer, max_skipped: int = 10, name: str = "plain") -> None:
        if not isinstance(base_optimizer, Optimizer):
            raise TypeError(f"base_optimizer={base_optimizer!r}: pass a built torch optimizer, not its class")
        if isinstance(base_optimizer, torch.optim.LBFGS):
            raise TypeError("base_optimizer=LBFGS: it evaluates its closure itself; use a first-order optimizer")
        if isinstance(base_optimizer, Wrapper) and not isinstance(base_optimizer, OnePass):
            raise TypeError("SAM inside another optimizer: put SAM outermost, as SAM(DAS(base))")
        _check_groups(base_optimizer.param_groups)
        inside: tuple[Wrapper, ...] = base_optimizer.chain() if isinstance(base_optimizer, Wrapper) else ()
        self.name: str = _free_name(name, {wrapper.name for wrapper in inside})
        self.base = base_optimizer
        self.own_state: dict[nn.Parameter, dict[str, Tensor]] = {}
        self._chain: tuple[Wrapper, ...] = (self, *inside)
        self._keys: dict[str, GroupKey] = {}
        # Not Optimizer.__init__: it would give this object groups and a state of its own.
        self.__setstate__({"defaults": base_optimizer.defaults})
        self.guard = StepGuard(self, max_skipped)
        if isinstance(base_optimizer, Wrapper):
            base_optimizer.guard.wrap()

    def __init_subclass__(cls) -> None:
        # Torch wraps `step` for its profiler and its hooks, which takes 20 us; the base's own step has them.
        super().__init_subclass__()
        if "step" in cls.__dict__:
            cls.step.hooked = True  # type: ignore[attr-defined]

    @abstractmethod
    def apply(self, first: FirstPass, pieces: Pieces) -> None:
        """Move the weights once, by the gradients in place and what the first pass measured.

        Every rank calls it, or none: the guard has seen that the step is finite everywhere. Call it under no_grad.
        """

    @property
    def networks(self) -> tuple[CoreNetwork, ...]:
        """The networks whose cores this wrapper itself asks about; none for most."""
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
        return self._chain[-1].base

    def chain(self) -> tuple["Wrapper", ...]:
        """This wrapper and those inside it, outermost first."""
        return self._chain

    def register_step_pre_hook(self, hook: Any) -> RemovableHandle:
        """Call `hook` before the base's step; not in a step that is skipped."""
        return self.base.register_step_pre_hook(hook)

    def register_step_post_hook(self, hook: Any) -> RemovableHandle:
        """Call `hook` after the base's step; not in a step that is skipped."""
        return self.base.register_step_post_hook(hook)

    def register_state_dict_pre_hook(self, hook: Any, prepend: bool = False) -> RemovableHandle:
        """Call `hook` before the base's state dict is made."""
        return self.base.register_state_dict_pre_hook(hook, prepend)

    def register_state_dict_post_hook(self, hook: Any, prepend: bool = False) -> RemovableHandle:
        """Call `hook` on the base's state dict."""
        return self.base.register_state_dict_post_hook(hook, prepend)

    def register_load_state_dict_pre_hook(self, hook: Any, prepend: bool = False) -> RemovableHandle:
        """Call `hook` on what is about to be loaded into the base."""
        return self.base.register_load_state_dict_pre_hook(hook, prepend)

    def register_load_state_dict_post_hook(self, hook: Any, prepend: bool = False) -> RemovableHandle:
        """Call `hook` after the base was loaded."""
        return self.base.register_load_state_dict_post_hook(hook, prepend)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base; it is measured from the next step on."""
        _check_groups([param_group])
        self.base.add_param_group(param_group)
        for wrapper in self._chain:
            for key in wrapper._keys.values():
                key.fill(self.param_groups)

    def add_key(self, word: str, value: float) -> GroupKey:
        """Have every parameter group hold a number for this wrapper; `value` where a group does not say.

        Raises:
            ValueError: `value`, or a group's own, is negative, infinite or no number.
        """
        taken = own_keys(self.base_optimizer) | {k.key for w in self._chain[1:] for k in w._keys.values()}
        key = self._keys[word] = GroupKey(word, value, self.name, taken)
        key.fill(self.param_groups)
        return key

    def group_key(self, word: str) -> str:
        """The key under which groups hold "rho" or "alpha", of the outermost wrapper that has one of that name.

        The word itself, unless the base optimizer or a wrapper inside uses it for another thing.

        Raises:
            KeyError: no wrapper of the chain has it.
        """
        return next(w._keys[word].key for w in self._chain if word in w._keys or w is self._chain[-1])

    def __getstate__(self) -> dict[str, Any]:
        # Optimizer's own keeps groups and state alone; here those are the base's. A schedule has put a `step` here that
        # is tied to this object.
        return {name: value for name, value in self.__dict__.items() if name != "step"}

    def state_dict(self) -> dict[str, Any]:
        """The base's state dict. Counters and `own_state` are apart."""
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
            if torch.is_grad_enabled():  # as nearly always: a context more costs as much as a small tensor call
                loss = closure()
            else:
                with torch.enable_grad():
                    loss = closure()
        except BaseException:
            self.guard.discard()
            raise
        if loss is None:
            raise ValueError("closure returned None: it must zero the gradients, run backward and return the loss")
        return loss.detach() if isinstance(loss, Tensor) else loss

    def is_primed(self) -> bool:
        """True if this step without a closure was none: `torch.distributed.checkpoint.state_dict` has an optimizer
        without state make one, by a step along gradients of zeros with learning rates of 0. Nothing is counted then."""
        base = self.base_optimizer
        if base.state or any(float(group["lr"]) != 0 for group in base.param_groups):
            return False
        grads = [p.grad for group in base.param_groups for p in group["params"] if p.grad is not None]
        if not grads or any(local_tensor(grad).any() for grad in grads):
            return False
        base.step()
        return True

    def attach(self, coordinator: BalanceCoordinator) -> None:
        """Report every pass and step to `coordinator`."""
        self.guard.attach(coordinator)

    def use_pieces(self, make_pieces: MakePieces) -> None:
        """Reach weights and gradients by `make_pieces`; for engines that keep them in a place of their own."""
        self.guard.use_pieces(make_pieces)

    @property
    def clip_norm(self) -> float | None:
        """Bound on the norm, over all parameters and ranks, of the gradient that the base optimizer gets; None: none.

        As torch.nn.utils.clip_grad_norm_. What SAM, DAS and BAR themselves read is the gradient before it.
        """
        return self.guard.clip_norm

    @clip_norm.setter
    def clip_norm(self, value: float | None) -> None:
        if value is not None and not 0 < value < float("inf"):
            raise ValueError(f"clip_norm={value}: use a finite number above 0, or None")
        if self.guard.is_inner:
            raise ValueError("clip_norm: this optimizer is wrapped by another; set it on the outermost one")
        self.guard.clip_norm = value

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

    @property
    def copies(self) -> tuple[Tensor, ...]:
        """Local tensors that it keeps from step to step beside state, to bring weights back; none for most."""
        return ()

    def own_counters(self) -> Mapping[str, Tensor | int]:
        """What this wrapper itself counts, "<name>/<what>" -> number, on the device where it is counted there."""
        return {}

    def load_own_counters(self, counters: Mapping[str, int]) -> None:
        """Restore what `own_counters` gave; only a wrapper that counts has any."""

    def counters(self) -> dict[str, int]:
        """What a checkpoint must keep beside tensors: steps, skipped ones, and what each wrapper counts.

        Reading the latter waits for the device.
        """
        own = {name: int(count) for wrapper in self._chain for name, count in wrapper.own_counters().items()}
        return {**self.guard.counters(), **own}

    def load_counters(self, counters: Mapping[str, int]) -> None:
        """Restore what `counters` gave."""
        self.guard.load_counters(counters)
        for wrapper in self._chain:
            names = wrapper.own_counters()
            wrapper.load_own_counters({name: count for name, count in counters.items() if name in names})

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

        Collectives: one all_reduce of at most P + N + 2 float64, P parameters, N cores; every rank calls it.

        Raises:
            TrainingDiverged: too many skipped steps in a row.
            InputError: no parameter has a gradient.
        """
        if closure is None and self.is_primed():
            return None
        loss = None if closure is None else self.evaluate(closure)
        guard = self.guard
        with torch.no_grad():
            first, grads = guard.first_pass(loss)
            if guard.accepts(first):
                check_any(grads)
                if guard.clip_norm is not None:
                    guard.clip(grads, first.grad_norm_sq)
                self.apply(first, guard.meter.pieces)
        guard.finish(first)
        return loss


class Plain(OnePass):
    """The base optimizer, measured and guarded: what SAM and its kin are compared with.

    One gradient and one small collective a step.
    """

    def apply(self, first: FirstPass, pieces: Pieces) -> None:
        """The base's step."""
        descend(self.base, first, pieces)


def descend(base: Optimizer, first: FirstPass, pieces: Pieces) -> None:
    """Let `base` move the weights: a wrapper by what was measured, a torch optimizer by its step."""
    if isinstance(base, Wrapper):
        base.apply(first, pieces)
    else:
        try:
            step_base(base)
        except RuntimeError as error:
            if "without overflow" not in str(error):
                raise
            problem = "the base optimizer has come to a number that the weights' dtype cannot hold"
            raise TrainingDiverged(f"{problem}; lower its learning rate or weight decay") from None


def _check_groups(param_groups: Iterable[dict[str, Any]]) -> None:
    if any(group.get("maximize") for group in param_groups):
        raise ValueError("maximize=True: sharpness is that of a loss; minimise the negative of what is to grow")


def _free_name(name: str, taken: set[str]) -> str:
    # Checkpoints name state by it, beside "model", "optim" and "best", up to the first dot.
    if not name.isidentifier() or name in ("model", "optim", "best"):
        raise ValueError(f"name={name!r}: call an ascent or rescale by one word other than model, optim and best")
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}{number}"
    return free
