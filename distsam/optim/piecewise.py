"""The base optimizer's step on this rank's pieces: the same bits as on DTensors, without their dispatch.

Every operation of an optimizer on a DTensor is looked up anew by torch, which on small cores takes longer than the
operation (Adam on four cores: 0.9 ms in place of 0.3). And a plan that leaves some parameters whole has plain tensors
beside DTensors, which torch's multi-tensor kernels, the default on an accelerator, refuse.
"""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim import optimizer as optimizers

from distsam.sharding import is_sharded, local_tensor, placed_like

# What these do to an element depends on that element's own gradient and state, so a piece can be stepped by itself.
# Others look at whole matrices (Muon, Adafactor), and what we do not know may.
_NAMES = ("Adadelta", "Adagrad", "Adam", "Adamax", "AdamW", "ASGD", "NAdam", "RAdam", "RMSprop", "SGD")
ELEMENTWISE = frozenset(getattr(torch.optim, name) for name in _NAMES)


def step_base(base: Optimizer) -> None:
    """Let `base` step along the gradients in place: on pieces where that is the same, else on the parameters as they
    are. State that it makes is placed like its parameter."""
    params = [p for group in base.param_groups for p in group["params"]]
    sharded = [p for p in params if is_sharded(p)]
    # A hook would find other parameters than the user's; of a parameter without dims no piece can be told from a count.
    if not sharded or type(base) not in ELEMENTWISE or _has_hooks(base) or not all(p.dim() for p in sharded):
        base.step()
        return
    pieces = {p: _piece(p) for p in sharded}
    whole_state, whole_groups = base.state, [group["params"] for group in base.param_groups]
    state: defaultdict[Any, Any] = defaultdict(dict)
    for param, values in whole_state.items():
        state[pieces.get(param, param)] = _local_values(values) if param in pieces else values
    try:
        base.state = state
        for group in base.param_groups:
            group["params"] = [pieces.get(p, p) for p in group["params"]]
        base.step()
    finally:
        base.state = whole_state
        for group, own in zip(base.param_groups, whole_groups, strict=True):
            group["params"] = own
        # Also of a step that raised: what it has done belongs to the weights that it has moved.
        for param in params:
            piece = pieces.get(param, param)
            if piece in state:
                _take_over(whole_state, param, piece, state[piece])


def _piece(param: nn.Parameter) -> Tensor:
    piece = local_tensor(param).detach()
    piece.grad = None if param.grad is None else local_tensor(param.grad)
    return piece


def _local_values(values: dict[str, Any]) -> dict[str, Any]:
    return {key: local_tensor(value) if isinstance(value, Tensor) else value for key, value in values.items()}


def _take_over(whole_state: Any, param: nn.Parameter, piece: Tensor, values: dict[str, Any]) -> None:
    """Keep what the step has made or replaced; what it changed in place is in its place."""
    if piece is param:
        whole_state[param] = values
        return
    own = whole_state[param]
    for key, value in values.items():
        if not isinstance(value, Tensor):
            own[key] = value
        elif key not in own or local_tensor(own[key]) is not value:
            own[key] = placed_like(param, value) if value.shape == piece.shape else value


def _has_hooks(base: Optimizer) -> bool:
    own = base._optimizer_step_pre_hooks or base._optimizer_step_post_hooks
    return bool(own or optimizers._global_optimizer_pre_hooks or optimizers._global_optimizer_post_hooks)
