"""The one importer of deepspeed, and everything of it that its public API does not name."""

import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from distsam.environment import place
from distsam.errors import ArgumentError

if not torch.cuda.is_available():
    # Else DeepSpeed looks for an accelerator and says at length that there is none.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its dependencies
        import deepspeed
        import deepspeed.ops
        from deepspeed.runtime.utils import all_gather_dp_groups, register_output_backward_hooks
        from deepspeed.utils import logger
except ImportError as error:
    raise ArgumentError(
        "kind", f"deepspeed is not installed or cannot be imported ({error}); pip install 'distsam[deepspeed]'"
    ) from None

# It would otherwise build an extension at start-up, which takes a compiler and most of a minute.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
# It warns of every optimizer that is not its own, on standard output.
logger.setLevel(logging.ERROR)


def initialize(model: nn.Module, base: Optimizer, settings: Mapping[str, Any]) -> Any:
    """DeepSpeed's engine over `model`, whose weights become those of rank 0.

    Collectives: DeepSpeed's own; every rank calls it.
    """
    if not dist.is_initialized():
        # Alone: DeepSpeed needs a process group all the same.
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    # It looks for this where neither torchrun nor its own launcher has started the process.
    os.environ.setdefault("LOCAL_RANK", str(place().local_rank))
    with quiet():
        engine, *_ = deepspeed.initialize(
            model=model, optimizer=base, model_parameters=list(model.parameters()), config=dict(settings)
        )
    return engine


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings that DeepSpeed's use of torch brings, of which its users can change nothing."""
    with warnings.catch_warnings():
        for kind in (FutureWarning, DeprecationWarning):
            warnings.filterwarnings("ignore", category=kind, module="torch")
        yield


def backward(engine: Any, loss: Tensor) -> None:
    """Backward of `loss` as it is, whatever computed it: `engine.forward` would take the call of a module only.

    Collectives: DeepSpeed's own at the accumulation boundary (at stage 2 at each call); every rank calls it.
    """
    register_output_backward_hooks(
        loss,
        preprocess_once_fn=engine._backward_prologue,
        preprocess_per_tensor_fn=engine._backward_prologue_per_tensor,
    )
    with quiet():
        engine.backward(loss, scale_wrt_gas=False)


def step(engine: Any) -> None:
    """The base optimizer's step along the gradients in place. Collectives: DeepSpeed's own; every rank calls it."""
    engine.set_gradient_accumulation_boundary(True)
    with quiet():
        engine.step()


def gather_partitions(zero: Any) -> None:
    """Give every rank the weights that each rank holds of the flat groups, at stages 1 and 2.

    Collectives: one all_gather a group and bucket; every rank calls it.
    """
    with quiet():
        all_gather_dp_groups(
            groups_flat=zero.bit16_groups_flat,
            partitioned_param_groups=zero.parallel_partitioned_bit16_groups,
            dp_process_group=zero.real_dp_process_group,
            start_alignment_factor=zero.nccl_start_alignment_factor,
            allgather_bucket_size=zero.allgather_bucket_size,
        )


def forget_gradients(zero: Any) -> None:
    """Forget the gradients of a pass, at stages 1 and 2: else the next pass would add to them."""
    zero.zero_grad()
    zero._release_preflattened_grad_buffers()
    for kept in (zero.averaged_gradients, zero.all_grad_tensors):
        for key in list(kept):
            kept[key] = None


def forget_backward(zero: Any) -> None:
    """Begin a pass: what a backward before has counted, also one that raised half way, counts no longer."""
    zero.clear_backward_seen_flag()
    while zero._backward_active_depth > 0:
        zero.exit_backward()


def fragment_of(param: nn.Parameter) -> Any:
    """Where this rank's part of `param` lies in the flat groups, at stages 1 and 2; None where it has none."""
    return param._hp_mapping  # type: ignore[attr-defined]


def gradient_of(param: nn.Parameter) -> Tensor:
    """The averaged gradient of this rank's part of `param`, flat, sharing storage."""
    found: Tensor = fragment_of(param).get_lp_grad_fragment(param._index_in_param_group)  # type: ignore[attr-defined]
    return found.reshape(-1)


def flat_groups(zero: Any) -> Sequence[Tensor]:
    """This rank's flat part of each parameter group, which the base optimizer steps."""
    found: Sequence[Tensor] = zero.single_partition_of_fp32_groups
    return found
