"""The one importer of deepspeed, and everything of it that its public API does not name."""

import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from distsam.environment import place
from distsam.errors import ArgumentError

# Of a message, in characters.
_LONGEST = 250

if not torch.cuda.is_available():
    # Else DeepSpeed looks for an accelerator and says at length that there is none.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its dependencies
        import deepspeed
        import deepspeed.ops
        from deepspeed.runtime.utils import all_gather_dp_groups, register_output_backward_hooks
        from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
        from deepspeed.utils import groups, logger
except ImportError as error:
    raise ArgumentError(
        "kind", f"deepspeed is not installed or cannot be imported ({error}); pip install 'distsam[deepspeed]'"
    ) from None

_world: Any = None

# It would otherwise build an extension at start-up, which takes a compiler and most of a minute.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
# It warns of every optimizer that is not its own, on standard output.
logger.setLevel(logging.ERROR)
# Its use of torch, of which its users can change nothing.
for _kind in (FutureWarning, DeprecationWarning):
    warnings.filterwarnings("ignore", category=_kind, module="torch")


def initialize(model: nn.Module, base: Optimizer, settings: Mapping[str, Any], has_users: bool) -> Any:
    """DeepSpeed's engine over `model`, whose weights become those of rank 0.

    Args:
        has_users: some of the settings are the user's: what DeepSpeed says of them is said to the user.

    Collectives: DeepSpeed's own; every rank calls it.

    Raises:
        ArgumentError: of `config`: something in it that DeepSpeed does not take.
    """
    if not dist.is_initialized():
        # Alone: DeepSpeed needs a process group all the same.
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    _leave_old_groups()
    # It looks for this where neither torchrun nor its own launcher has started the process.
    os.environ.setdefault("LOCAL_RANK", str(place().local_rank))
    try:
        engine, *_ = deepspeed.initialize(
            model=model, optimizer=base, model_parameters=list(model.parameters()), config=dict(settings)
        )
    except Exception as error:  # as many kinds as its config has sections; without a config of the user's it is ours
        if not has_users:
            raise
        raise ArgumentError("config", f"DeepSpeed does not take it: {_shortened(error)}") from None
    return engine


def _leave_old_groups() -> None:
    """Forget the groups of an earlier run of this process, which has left its process group."""
    global _world
    if _world is not None and _world is not dist.group.WORLD:
        deepspeed.comm.comm.cdb = None
        groups._release_process_group_references(group=None)
    _world = dist.group.WORLD


def _shortened(error: Exception) -> str:
    found = error.errors() if hasattr(error, "errors") else []  # of pydantic
    text = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in found) or str(error)
    text = " ".join(text.split()) or type(error).__name__
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def backward(engine: Any, loss: Tensor) -> None:
    """Backward of `loss` as it is, whatever computed it: `engine.forward` would take the call of a module only.

    Collectives: DeepSpeed's own at the accumulation boundary (at stage 2 at each call); every rank calls it.
    """
    register_output_backward_hooks(
        loss,
        preprocess_once_fn=engine._backward_prologue,
        preprocess_per_tensor_fn=engine._backward_prologue_per_tensor,
    )
    engine.backward(loss, scale_wrt_gas=False)


def step(engine: Any) -> None:
    """The base optimizer's step along the gradients in place. Collectives: DeepSpeed's own; every rank calls it."""
    engine.set_gradient_accumulation_boundary(True)
    engine.step()


@dataclass(frozen=True)
class Part:
    """This rank's part of a flattened parameter, and where it lies in a flat tensor that the base steps.

    Args:
        flat: that tensor.
        offset: of the part in it.
        start: of the part in the parameter.
        length: of the part, 0 where this rank has none.
        index: (group, place in it) of the parameter among those that DeepSpeed steps.
    """

    flat: Tensor
    offset: int
    start: int
    length: int
    index: tuple[int, int]

    def of(self, values: Tensor) -> Tensor:
        """The part of `values`, which are laid out as `flat`; sharing storage."""
        return values.narrow(0, self.offset, self.length)


def is_cut(zero: Any) -> bool:
    """True for stage 3."""
    return isinstance(zero, DeepSpeedZeroOptimizer_Stage3)


def parts_of(zero: Any) -> dict[nn.Parameter, Part]:
    """Where this rank's part of each parameter that is stepped lies, from stage 1 on."""
    groups = zero.fp16_groups if is_cut(zero) else zero.bit16_groups
    return {
        param: _part_of(zero, param, group, place)
        for group, params in enumerate(groups)
        for place, param in enumerate(params)
    }


def _part_of(zero: Any, param: nn.Parameter, group: int, place: int) -> Part:
    if is_cut(zero):
        _, offset, _ = zero.grad_position[zero.get_param_id(param)]
        start, length = bounds(param)
        return Part(zero.fp32_partitioned_groups_flat[group], offset, start, length, (group, place))
    # Of the group's flat form every rank holds a run, which need not meet the parameter.
    flat, own = zero.single_partition_of_fp32_groups[group], param._hp_mapping  # type: ignore[attr-defined]
    if own is None:
        return Part(flat, 0, 0, 0, (group, place))
    read, stepped = own.lp_fragment_address, own.hp_fragment_address
    return Part(flat, stepped.start, read.start, read.numel, (group, place))


def shape_of(param: nn.Parameter) -> torch.Size:
    """The full shape, also of a parameter that is cut."""
    return torch.Size(getattr(param, "ds_shape", param.shape))


def cut_weights(param: nn.Parameter) -> Tensor:
    """This rank's part of a parameter at stage 3, flat, without padding, sharing storage."""
    whole: Tensor = param.ds_tensor.data.view(-1)  # type: ignore[attr-defined]
    return whole.narrow(0, 0, bounds(param)[1])


def bounds(param: nn.Parameter) -> tuple[int, int]:
    """Start and length of this rank's part of a cut parameter: equal parts, the last of them padded."""
    size, total = param.ds_tensor.numel(), param.ds_numel  # type: ignore[attr-defined]
    start = min(size * dist.get_rank(), total)
    return start, min(size, total - start)


def gather_partitions(zero: Any) -> None:
    """Give every rank the weights that each rank holds of the flat groups, at stages 1 and 2.

    Collectives: one all_gather a group and bucket; every rank calls it.
    """
    all_gather_dp_groups(
        groups_flat=zero.bit16_groups_flat,
        partitioned_param_groups=zero.parallel_partitioned_bit16_groups,
        dp_process_group=zero.real_dp_process_group,
        start_alignment_factor=zero.nccl_start_alignment_factor,
        allgather_bucket_size=zero.allgather_bucket_size,
    )


def gather_again(zero: Any) -> None:
    """Drop what was gathered of parameters at stage 3, and gather again those that are kept whole between passes.

    Collectives: one all_gather of those; every rank calls it.
    """
    zero._partition_all_parameters()
    if zero.persistent_parameters:
        zero.persistent_parameters[0].all_gather(zero.persistent_parameters)


@contextmanager
def gathering(module: nn.Module) -> Iterator[None]:
    """Inside, parameters of `module` at stage 3 are gathered when they are read, as in a forward of the whole model."""
    modules = list(module.modules())
    before = [inner._parameters._in_forward for inner in modules]  # type: ignore[attr-defined]
    for inner in modules:
        inner._parameters._in_forward = True  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for inner, was in zip(modules, before, strict=True):
            inner._parameters._in_forward = was  # type: ignore[attr-defined]


def forget_gradients(zero: Any) -> None:
    """Forget the gradients of a pass, from stage 1 on: else the next pass would add to them."""
    zero.zero_grad()
    if is_cut(zero):
        # A parameter that the next pass does not reach would keep them.
        zero.grad_partitions_flat_buffer.zero_()
        return
    zero._release_preflattened_grad_buffers()
    for kept in (zero.averaged_gradients, zero.all_grad_tensors):
        for key in list(kept):
            kept[key] = None


def forget_backward(zero: Any) -> None:
    """Begin a backward: what one before has counted, also one that raised half way, counts no longer."""
    zero.clear_backward_seen_flag()
    while zero._backward_active_depth > 0:
        zero.exit_backward()


def forget_pass(zero: Any) -> None:
    """What a pass that raised has left behind: counts, half-done sums, and at stage 3 what it has gathered."""
    forget_backward(zero)
    for bucket in zero.ipg_buckets.values():
        bucket.clear_params() if is_cut(zero) else bucket.clear()
    if is_cut(zero):
        for key in zero.params_already_reduced:
            zero.params_already_reduced[key] = False
        zero._partition_all_parameters()
        # Its own way to forget them records a stream, which CPU does not have.
        for params in zero.fp16_groups:
            for param in params:
                param.grad = None
    forget_gradients(zero)


def gradient_of(param: nn.Parameter) -> Tensor:
    """The averaged gradient of this rank's part of `param`, flat, sharing storage, at stages 1 and 2."""
    found: Tensor = param._hp_mapping.get_lp_grad_fragment(param._index_in_param_group)  # type: ignore[attr-defined]
    return found.reshape(-1)


def copy_gradient(zero: Any, part: Part) -> Tensor:
    """The averaged gradient of this rank's part of a parameter, flat, at stage 3: a copy, put where the step reads."""
    group, place = part.index
    copy: Tensor = zero.averaged_gradients[group][place].clone()
    zero.averaged_gradients[group][place] = copy
    return copy.view(-1).narrow(0, 0, part.length)
