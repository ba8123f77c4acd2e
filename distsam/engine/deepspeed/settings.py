"""DeepSpeed's config: the user's, with what distsam must set, without what would make SAM wrong."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from distsam.errors import ArgumentError

STAGES = (0, 1, 2, 3)
_LONGEST = 60


def settings_for(
    stage: int,
    given: Mapping[str, Any],
    known: Mapping[str, tuple[str, Any]] | None = None,
    instead: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The config to hand to DeepSpeed.

    Args:
        stage: of ZeRO.
        given: the user's; a key that is "auto" counts as left out.
        known: DeepSpeed's key, dotted -> (what it is called here, the value that it has here, None for none): keys that
            the user may repeat, but not contradict.
        instead: DeepSpeed's key that is refused -> what gives the same here.

    Raises:
        ArgumentError: of `config`: a key that DeepSpeed does not have, one that contradicts, or one under which SAM
            would be wrong; of `stage`.
    """
    if stage not in STAGES:
        raise ArgumentError("stage", f"{stage}: must be one of {', '.join(map(str, STAGES))}")
    given = _without_auto(given)
    _refuse_unknown(given)
    for key, (allowed, reason) in _REFUSED.items():
        if (found := _at(given, key)) not in allowed:
            hint = (instead or {}).get(key)
            raise ArgumentError("config", f"{key} is {_shown(found)} there: {reason}{f'; set {hint}' if hint else ''}")
    for key, (name, value) in {"zero_optimization.stage": ("stage", stage), **(known or {})}.items():
        found = _at(given, key)
        if found not in (None, value, 0 if value is None else value):
            here = "null" if value is None else repr(value)
            raise ArgumentError(
                "config", f"{key} is {_shown(found)} there, and {name} is {here} here; set {name} alone"
            )
    return {
        "steps_per_print": None,
        **{key: value for key, value in given.items() if key not in ("optimizer", "scheduler")},
        **SET_HERE,
        "zero_optimization": {**given.get("zero_optimization", {}), "stage": stage},
    }


# What distsam sets, whatever the user's config says.
SET_HERE: dict[str, Any] = {
    "train_micro_batch_size_per_gpu": 1,  # which DeepSpeed uses to report speed alone
    "gradient_accumulation_steps": 1,  # the engine sets the boundaries itself
    "gradient_clipping": 0.0,  # its default is 1.0; the optimizer clips, by the norm over all ranks
    "zero_allow_untested_optimizer": True,
}

_NOTHING: tuple[Any, ...] = (None, False, {})
_BATCH = "the batch is that of the task"
_SCALED = "SAM's radius is that of gradients that no loss scale multiplies"
_BF16 = "weights stay in float32 here, and the passes run in bfloat16"
_OFFLOAD = "SAM moves weights on the device between two passes; leave it out"
_QUANTIZED = "a perturbation of SAM is smaller than what quantization rounds to; leave it out"
_PARALLEL = "every rank has its own part of the data here; leave it out"
_LAYERS = "it changes the model between two passes; leave it out"
_DATA = "the batches are those of the task; leave it out"
_FLOAT32 = "SAM measures gradients in float32; leave it out"
# Key -> what it may be, and why nothing else.
_REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "optimizer": (_NOTHING, "the optimizer is distsam's own"),
    "scheduler": (_NOTHING, "the schedules are distsam's own"),
    "train_batch_size": (_NOTHING, _BATCH),
    "train_micro_batch_size_per_gpu": (_NOTHING, _BATCH),
    "fp16.enabled": (_NOTHING, _SCALED),
    "amp.enabled": (_NOTHING, _SCALED),
    "bf16.enabled": (_NOTHING, _BF16),
    "bfloat16.enabled": (_NOTHING, _BF16),
    "torch_autocast.enabled": (_NOTHING, _BF16),
    "zero_optimization.round_robin_gradients": (
        _NOTHING,
        "the parts of a gradient would lie elsewhere than those of its weights; leave it out",
    ),
    "zero_optimization.offload_optimizer.device": ((None, "none"), _OFFLOAD),
    "zero_optimization.offload_param.device": ((None, "none"), _OFFLOAD),
    "zero_optimization.cpu_offload": (_NOTHING, _OFFLOAD),
    "zero_optimization.cpu_offload_param": (_NOTHING, _OFFLOAD),
    "zero_optimization.zenflow": (
        _NOTHING,
        "weights would be stepped apart from the gradients that SAM has measured; leave it out",
    ),
    "zero_optimization.zero_hpz_partition_size": (
        (None, 0, 1),
        "passes would read a second copy of the weights, which SAM does not move; leave it out",
    ),
    "zero_optimization.zero_quantized_weights": (_NOTHING, _QUANTIZED),
    "zero_optimization.zero_quantized_nontrainable_weights": (_NOTHING, _QUANTIZED),
    "zero_optimization.zero_quantized_gradients": (_NOTHING, _QUANTIZED),
    "managed_gradient_accumulation": (
        (None, True),
        "the engine sets the boundaries of SAM's two passes itself; leave it out",
    ),
    "gradient_allreduce_op": ((None, "mean"), "the loss is the mean over the ranks; leave it out"),
    "data_types.grad_accum_dtype": ((None, "fp32"), _FLOAT32),
    "communication_data_type": ((None, "fp32"), _FLOAT32),
    "sequence_parallel_size": ((None, 1), _PARALLEL),
    "tensor_parallel": (_NOTHING, _PARALLEL),
    "expert_parallel": (_NOTHING, _PARALLEL),
    "pipeline": (_NOTHING, _PARALLEL),
    "elasticity.enabled": (_NOTHING, _DATA),
    "data_efficiency.enabled": (_NOTHING, _DATA),
    "curriculum_learning.enabled": (_NOTHING, _DATA),
    "progressive_layer_drop.enabled": (_NOTHING, _LAYERS),
    "hybrid_engine.enabled": (_NOTHING, _LAYERS),
    "compression_training": (_NOTHING, _LAYERS),
    "compile.deepcompile": (_NOTHING, "the engine compiles nothing; compile the model yourself"),
    "sparse_gradients": (_NOTHING, "SAM moves every weight; leave it out"),
}
# Keys of DeepSpeed's config. It passes over others without a word, so that one that is misspelt would do nothing.
_SECTIONS = """
    activation_checkpointing aio amp autotuning bf16 bfloat16 checkpoint comet comms_logger compile
    compression_training csv_monitor curriculum_learning data_efficiency data_types eigenvalue elasticity
    expert_parallel flops_profiler fp16 hybrid_engine nebula optimizer pipeline progressive_layer_drop
    quantize_training scheduler sparse_attention tensor_parallel tensorboard timers torch_autocast wandb
    weight_quantization zero_optimization
"""
_VALUES = """
    communication_data_type dataloader_drop_last disable_allgather disable_python_gc dump_state
    gradient_accumulation_steps gradient_allreduce_op gradient_clipping gradient_predivide_factor log_level
    managed_gradient_accumulation memory_breakdown prescale_gradients seq_parallel_communication_data_type
    sequence_parallel_size sparse_gradients steps_per_print train_batch_size train_micro_batch_size_per_gpu
    use_data_before_expert_parallelism vocabulary_size wall_clock_breakdown zero_allow_untested_optimizer
    zero_force_ds_cpu_optimizer
"""


def _refuse_unknown(given: Mapping[str, Any]) -> None:
    sections, values = _SECTIONS.split(), _VALUES.split()
    for key, value in given.items():
        if key not in sections + values:
            if value is None and ":" in key:
                raise ArgumentError("config", f"{key} needs a space after its colon")
            nearest = get_close_matches(key, sections + values, n=1)
            hint = f"; did you mean {nearest[0]}?" if nearest else ""
            raise ArgumentError("config", f"{key} is no key of DeepSpeed's config{hint}")
        if key in sections and not isinstance(value, Mapping):
            raise ArgumentError("config", f"{key} is {_shown(value)} there; it must be a mapping of its keys")
    for key, kind in (("steps_per_print", int), ("wall_clock_breakdown", bool), ("memory_breakdown", bool)):
        if not isinstance(given.get(key), kind | None):
            what = "a whole number" if kind is int else "true or false"
            raise ArgumentError("config", f"{key} is {_shown(given[key])} there; it must be {what}")


def _without_auto(given: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_auto(value) if isinstance(value, Mapping) else value
        for key, value in given.items()
        if not (isinstance(value, str) and value == "auto")
    }


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _at(given: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted key; None where there is none."""
    found: Any = given
    for part in key.split("."):
        if not isinstance(found, Mapping):
            return None
        found = found.get(part)
    return found
