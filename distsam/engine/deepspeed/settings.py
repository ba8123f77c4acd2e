"""DeepSpeed's config: the user's, with what distsam must set, without what would make SAM wrong."""

from collections.abc import Mapping
from typing import Any

from distsam.errors import ArgumentError

STAGES = (0, 1, 2, 3)


def settings_for(
    stage: int, given: Mapping[str, Any], known: Mapping[str, tuple[str, Any]], num_elements: int
) -> dict[str, Any]:
    """The config to hand to DeepSpeed.

    Args:
        stage: of ZeRO.
        given: the user's; a key that is "auto" counts as left out.
        known: DeepSpeed's key, dotted -> (what it is called here, the value that it has here): keys that the user may
            repeat, but not contradict.
        num_elements: of all weights.

    Raises:
        ArgumentError: of `config`: a key that contradicts, or one under which SAM would be wrong; of `stage`.
    """
    if stage not in STAGES:
        raise ArgumentError("stage", f"{stage}: must be one of {', '.join(map(str, STAGES))}")
    given = _without_auto(given)
    for key, (name, value) in {"zero_optimization.stage": ("stage", stage), **known}.items():
        found = _at(given, key)
        if found not in (None, value):
            raise ArgumentError("config", f"{key} is {found!r} there, and {name} is {value!r} here; leave it out there")
    for key, (allowed, reason) in _REFUSED.items():
        found = _at(given, key)
        if found not in allowed:
            raise ArgumentError("config", f"{key} is {found!r} there: {reason}")
    zero = given.get("zero_optimization") or {}
    return {
        "steps_per_print": None,
        **{key: value for key, value in given.items() if key not in ("optimizer", "scheduler")},
        "train_micro_batch_size_per_gpu": 1,  # which DeepSpeed uses to report speed alone
        "gradient_accumulation_steps": 1,  # the engine sets the boundaries itself
        "gradient_clipping": 0.0,  # its default is 1.0; the optimizer clips, by the norm over all ranks
        "zero_allow_untested_optimizer": True,
        # At stage 3 a buffer of that size is held, by default of 5e8 elements however small the model is.
        "zero_optimization": {"reduce_bucket_size": min(num_elements, 500_000_000), **zero, "stage": stage},
    }


_NOTHING: tuple[Any, ...] = (None, False, {})
_BATCH = "the batch is that of the task; leave it out"
_SCALED = "SAM's radius is that of gradients that no loss scale multiplies; use bf16, by distsam's own precision"
_BF16 = "distsam's own precision bf16 keeps weights in float32 and runs the passes in bfloat16; leave it out"
_QUANTIZED = "a perturbation of SAM is smaller than what quantization rounds to; leave it out"
_PARALLEL = "every rank has its own part of the data here; leave it out"
_OFFLOAD = "SAM moves weights on the device between two passes; leave it out"
# Key -> what it may be, and why nothing else.
_REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "optimizer": (_NOTHING, "the optimizer is distsam's own; leave it out"),
    "scheduler": (_NOTHING, "the schedules are distsam's own; leave it out"),
    "train_batch_size": (_NOTHING, _BATCH),
    "train_micro_batch_size_per_gpu": (_NOTHING, _BATCH),
    "fp16.enabled": (_NOTHING, _SCALED),
    "amp.enabled": (_NOTHING, _SCALED),
    "bf16.enabled": (_NOTHING, _BF16),
    "torch_autocast.enabled": (_NOTHING, _BF16),
    "zero_optimization.round_robin_gradients": (
        _NOTHING,
        "the parts of a gradient would lie elsewhere than those of its weights; leave it out",
    ),
    "zero_optimization.offload_optimizer.device": ((None, "none"), _OFFLOAD),
    "zero_optimization.offload_param.device": ((None, "none"), _OFFLOAD),
    "zero_optimization.zenflow": (
        _NOTHING,
        "weights would be stepped apart from the gradients that SAM has measured; leave it out",
    ),
    "managed_gradient_accumulation": (
        (None, True),
        "the engine sets the boundaries of SAM's two passes itself; leave it out",
    ),
    "zero_optimization.zero_hpz_partition_size": (
        (None, 0, 1),
        "passes would read a second copy of the weights, which SAM does not move; leave it out",
    ),
    "zero_optimization.zero_quantized_weights": (_NOTHING, _QUANTIZED),
    "zero_optimization.zero_quantized_nontrainable_weights": (_NOTHING, _QUANTIZED),
    "zero_optimization.zero_quantized_gradients": (_NOTHING, _QUANTIZED),
    "gradient_allreduce_op": ((None, "mean"), "the loss is the mean over the ranks; leave it out"),
    "data_types.grad_accum_dtype": ((None, "fp32"), "SAM measures gradients in float32; leave it out"),
    "sequence_parallel_size": ((None, 1), _PARALLEL),
    "tensor_parallel.autotp_size": ((None, 0, 1), _PARALLEL),
    "compile.deepcompile": (_NOTHING, "the engine compiles nothing; compile the model yourself"),
    "sparse_gradients": (_NOTHING, "SAM moves every weight; leave it out"),
    "compression_training": (_NOTHING, "it changes the weights between two passes; leave it out"),
}


def _without_auto(given: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_auto(value) if isinstance(value, Mapping) else value
        for key, value in given.items()
        if not (isinstance(value, str) and value == "auto")
    }


def _at(given: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted key; None where there is none."""
    found: Any = given
    for part in key.split("."):
        if not isinstance(found, Mapping):
            return None
        found = found.get(part)
    return found
