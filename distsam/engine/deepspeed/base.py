"""The base optimizer as the chain of wrappers sees it: groups of the model's parameters, stepped by DeepSpeed."""

from collections import OrderedDict
from typing import Any

from torch.optim import Optimizer

from distsam.engine.deepspeed import library


class SteppedByDeepSpeed(Optimizer):
    """Stands for a torch optimizer whose groups DeepSpeed has filled with flat parts of its own.

    Build it before DeepSpeed's engine: it keeps the groups as they are then, and leaves the base those that move. What
    is changed in them (a learning rate) reaches the optimizer with the next step.

    Args:
        base: the torch optimizer.
    """

    def __init__(self, base: Optimizer) -> None:
        self.base = base
        self._groups = [{**group, "params": list(group["params"])} for group in base.param_groups]
        # A group that is frozen throughout would be an empty flat part, which DeepSpeed does not take.
        base.param_groups[:] = [group for group in base.param_groups if _moves(group)]
        self._moved = [group for group in self._groups if _moves(group)]
        self._engine: Any = None
        # Not Optimizer.__init__, which makes groups of its own; but its hooks, which a step runs.
        self.__setstate__({"defaults": base.defaults})
        self._optimizer_step_pre_hooks = OrderedDict()
        self._optimizer_step_post_hooks = OrderedDict()

    def follow(self, engine: Any) -> None:
        """Step by this engine of DeepSpeed from now on."""
        self._engine = engine

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The groups, with the model's parameters."""
        return self._groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """The optimizer's own state, of flat parts from stage 1 on."""
        return self.base.state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refused: DeepSpeed cuts the parameters once.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError("add_param_group: DeepSpeed has cut the parameters; build optimizer and engine anew")

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's own."""
        return self.base.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Into the optimizer itself."""
        self.base.load_state_dict(state_dict)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of DeepSpeed's engine. Collectives: its own; every rank calls it."""
        for group, own in zip(self.base.param_groups, self._moved, strict=True):
            group.update({key: value for key, value in own.items() if key != "params"})
        library.step(self._engine)


def _moves(group: dict[str, Any]) -> bool:
    return any(param.requires_grad for param in group["params"])
