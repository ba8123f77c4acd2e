"""The keys of engines, and how each is built."""

import json
from pathlib import Path
from typing import Any, Literal

from distsam.errors import InputError
from distsam.train.keys_of_arguments import arguments_as_keys
from distsam.train.seams import Field, Section, field_validator


class NativeKeys(Section):
    """kind: native takes no keys of its own."""


class DeepSpeedKeys(Section):
    """kind: deepspeed."""

    stage: Literal[0, 1, 2, 3] = Field(
        description="Of ZeRO: from 1 on optimizer state is cut, from 2 on gradients, at 3 weights."
    )
    config: dict[str, Any] | None = Field(
        default=None, description="DeepSpeed's own config: a mapping, or a JSON or YAML file, whose content is taken."
    )

    @field_validator("config", mode="before")
    @classmethod
    def _read(cls, given: Any) -> Any:
        return _settings_in(Path(given).expanduser()) if isinstance(given, str) else given


def _settings_in(path: Path) -> Any:
    from distsam.train.config_file import read_yaml

    if path.suffix.lower() != ".json":
        return read_yaml(path)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file here, in {Path.cwd()}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({getattr(error, 'strerror', None) or error})") from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: must be a mapping, as DeepSpeed's config is")
    return found


def build_native(config: Any, model: Any, optimizer: Any, **settings: Any) -> Any:
    """Plain torch."""
    from distsam.engine import NativeEngine

    return NativeEngine(model, optimizer, **settings)


def prepare_deepspeed(config: Any) -> None:
    """InputError where deepspeed cannot be imported, or its config cannot be used."""
    keys = config.part_keys("engine", DeepSpeedKeys)
    with arguments_as_keys("engine"):
        import distsam.engine.deepspeed.library  # noqa: F401
        from distsam.engine.deepspeed.settings import settings_for

        settings_for(keys.stage, keys.config or {}, _known(config, keys), _INSTEAD)


def describe_deepspeed(config: Any) -> str:
    """What distsam sets in DeepSpeed's config."""
    from distsam.engine.deepspeed.settings import SET_HERE

    return f"DeepSpeed with {', '.join(f'{key} {value}' for key, value in SET_HERE.items())}, set by distsam"


def build_deepspeed(config: Any, model: Any, optimizer: Any, **settings: Any) -> Any:
    """DeepSpeed's ZeRO."""
    keys = config.part_keys("engine", DeepSpeedKeys)
    with arguments_as_keys("engine", model="task.kind"):
        from distsam.engine.deepspeed.engine import DeepSpeedEngine

        known = _known(config, keys)
        return DeepSpeedEngine(
            model, optimizer, stage=keys.stage, settings=keys.config, known=known, instead=_INSTEAD, **settings
        )


def _known(config: Any, keys: DeepSpeedKeys) -> dict[str, tuple[str, Any]]:
    return {
        "zero_optimization.stage": ("engine.stage", keys.stage),
        "gradient_accumulation_steps": ("train.accumulate", config.train.accumulate),
        "gradient_clipping": ("optim.clip_norm", config.optim.clip_norm),
    }


# Key of DeepSpeed's config that is refused -> what gives the same here.
_INSTEAD = {
    "optimizer": "optim.base and its keys",
    "scheduler": "optim.schedule",
    "train_batch_size": "train.batch_size, of all ranks together",
    "train_micro_batch_size_per_gpu": "train.batch_size, of all ranks together, and train.accumulate",
    **dict.fromkeys(
        ("fp16.enabled", "amp.enabled", "bf16.enabled", "bfloat16.enabled", "torch_autocast.enabled"),
        "train.precision=bf16",
    ),
}


def plan_of_deepspeed(config: Any) -> Any:
    """The plan in place of sharding.plan: DeepSpeed cuts what it cuts itself."""
    from distsam.engine.deepspeed.plan import Zero

    return Zero(config.part_keys("engine", DeepSpeedKeys).stage)


def check_deepspeed(config: Any) -> None:
    """InputError where other sections ask for what DeepSpeed does not do."""
    network = getattr(config, "network", None)
    for key, value in (("train.precision", config.train.precision), ("network.dtype", getattr(network, "dtype", None))):
        if value == "float64":
            raise InputError(
                f"{key}: float64 is not trained by engine.kind=deepspeed; use float32 (train.precision=bf16 runs the "
                "passes in bfloat16)"
            )
