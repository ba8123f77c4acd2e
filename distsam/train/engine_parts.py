"""The keys of engines, and how each is built."""

from pathlib import Path
from typing import Any

from distsam.errors import InputError
from distsam.train.keys_of_arguments import arguments_as_keys
from distsam.train.seams import Field, Section


class NativeKeys(Section):
    """kind: native takes no keys of its own."""


class DeepSpeedKeys(Section):
    """kind: deepspeed."""

    stage: int = Field(
        default=2,
        ge=0,
        le=3,
        description="Of ZeRO: from 1 on optimizer state is cut, from 2 on gradients, at 3 weights.",
    )
    config: str | dict[str, Any] | None = Field(
        default=None, description="DeepSpeed's own config, a JSON or YAML file or a mapping."
    )


def build_native(config: Any, model: Any, optimizer: Any, **settings: Any) -> Any:
    """Plain torch."""
    from distsam.engine import NativeEngine

    return NativeEngine(model, optimizer, **settings)


def build_deepspeed(config: Any, model: Any, optimizer: Any, **settings: Any) -> Any:
    """DeepSpeed's ZeRO."""
    from distsam.train.config_file import read_yaml

    keys = config.part_keys("engine", DeepSpeedKeys)
    try:
        given = read_yaml(Path(keys.config)) if isinstance(keys.config, str) else keys.config or {}
    except InputError as error:
        raise InputError(f"engine.config: {error}") from None
    with arguments_as_keys("engine"):
        from distsam.engine.deepspeed.engine import DeepSpeedEngine

        known = {
            "zero_optimization.stage": ("engine.stage", keys.stage),
            "gradient_accumulation_steps": ("train.accumulate", config.train.accumulate),
            "gradient_clipping": ("optim.clip_norm", config.optim.clip_norm or 0.0),
        }
        return DeepSpeedEngine(model, optimizer, stage=keys.stage, settings=given, known=known, **settings)


def plan_of_deepspeed(config: Any) -> Any:
    """The plan in place of sharding.plan: DeepSpeed cuts what it cuts itself."""
    from distsam.engine.deepspeed.plan import Zero

    return Zero(config.part_keys("engine", DeepSpeedKeys).stage)


def check_deepspeed(config: Any) -> None:
    """InputError where other sections ask for what DeepSpeed does not do."""
    network = getattr(config, "network", None)
    for key, value in (("train.precision", config.train.precision), ("network.dtype", getattr(network, "dtype", None))):
        if value == "float64":
            raise InputError(f"{key}: float64 is not trained by engine.kind=deepspeed; use float32 or bf16")
