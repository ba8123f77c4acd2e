"""The keys of base optimizers, ascents and rescales, and how each is built."""

from typing import Annotated, Any, ClassVar, Literal

from distsam.errors import InputError
from distsam.train.seams import Field, Part, Seam, Section, Shape

# A number, or the word by which it follows from the weights at the start.
Strength = Annotated[float, Field(ge=0)] | Literal["auto"]


class SGDKeys(Section):
    """base: sgd."""

    momentum: float = Field(default=0.0, ge=0, lt=1, description="Momentum.")


class AdamKeys(Section):
    """base: adam and adamw take no keys of their own."""


class ALSKeys(Section):
    """base: als takes no keys of its own."""


def _auto_rho(optim: Any, model: Any) -> float:
    from distsam.optim import auto_rho

    return auto_rho(model, optim.scope)


def _auto_das_alpha(optim: Any, model: Any) -> float:
    from distsam.optim import auto_das_alpha

    return auto_das_alpha(model, optim.norm)


def _auto_bar_alpha(optim: Any, model: Any) -> float:
    from distsam.optim import auto_bar_alpha

    return auto_bar_alpha(model)


class SAMKeys(Section):
    """method: sam."""

    SWEPT: ClassVar = ("rho", "rho_schedule", "rho_warmup_steps", "final_rho")
    RULES: ClassVar = {"rho": _auto_rho}

    rho: Strength = Field(default=0.05, description="Radius of the perturbation; auto: from the norm of the start.")
    rho_schedule: Shape = Field(default="constant", description="Course of rho after its warm-up.")
    rho_warmup_steps: int = Field(default=0, ge=0, description="Steps over which rho rises to its value.")
    final_rho: float = Field(default=0.0, ge=0, description="linear, cosine: what rho goes to as the run ends.")
    scope: Literal["global", "network", "core"] = Field(default="global", description="Which norm divides.")


class RescaleKeys(Section):
    """method: nbar and obar; das too."""

    SWEPT: ClassVar = ("alpha", "alpha_schedule", "alpha_warmup_steps", "final_alpha")
    RULES: ClassVar = {"alpha": _auto_bar_alpha}

    alpha: Strength = Field(description="Strength of the rescaling; auto: from the norm of the start.")
    alpha_schedule: Shape = Field(default="constant", description="Course of alpha after its warm-up.")
    alpha_warmup_steps: int = Field(default=0, ge=0, description="Steps over which alpha rises to its value.")
    final_alpha: float = Field(default=0.0, ge=0, description="linear, cosine: what alpha goes to as the run ends.")


class DASKeys(RescaleKeys):
    """method: das."""

    RULES: ClassVar = {"alpha": _auto_das_alpha}

    lambda_max: float = Field(default=0.1, gt=0, lt=1, description="Largest relative rescaling in one step.")
    norm: Literal["cores", "global", "network"] = Field(default="cores", description="Which norm divides.")


def build_sgd(optim: Any, params: Any) -> Any:
    """torch's SGD."""
    from torch.optim import SGD

    return SGD(params, lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay)


def build_adam(optim: Any, params: Any) -> Any:
    """torch's Adam."""
    from torch.optim import Adam

    return Adam(params, lr=optim.lr, weight_decay=optim.weight_decay)


def build_adamw(optim: Any, params: Any) -> Any:
    """torch's AdamW."""
    from torch.optim import AdamW

    return AdamW(params, lr=optim.lr, weight_decay=optim.weight_decay)


def build_als(optim: Any, model: Any, task: Any) -> Any:
    """Alternating least squares over the cores of the model's network, on the training entries of the task.

    Raises:
        ArgumentError: a core is too large to be solved for.
    """
    from distsam.optim import ALS
    from distsam.tensornet import core_networks

    [network] = core_networks(model)
    known = task.observations()
    return ALS(network, known.indices, known.targets, known.factor, weight_decay=optim.weight_decay, lr=optim.lr)


def check_als(ascents: Seam[Part], rescales: Seam[Part], config: Any) -> None:
    """InputError where base: als would have to do what it does not do, or leave a key unused.

    Args:
        ascents, rescales: the two seams of optim.method.
        config: of the run.
    """
    optim = config.optim
    if config.task.kind != "completion":
        raise InputError(
            f"optim.base: als solves for the entries of a tensor, which task.kind={config.task.kind} does not learn; "
            "use sgd, adam or adamw"
        )
    words = optim.method.split("+")
    for word in words:
        if word in ascents.parts:
            raise InputError(
                f"optim.method: {optim.method} steps along the gradient at other weights, and optim.base=als uses no "
                f"gradient; use base or one of {', '.join(rescales.parts)}"
            )
    if config.sharding.plan not in ("auto", "replicate"):
        raise InputError(
            f"sharding.plan: {config.sharding.plan} cuts the weights, and optim.base=als needs all of them on every "
            "rank; use auto or replicate"
        )
    if config.engine.kind != "native":
        raise InputError(f"engine.kind: {config.engine.kind} is not known to optim.base=als; use native")
    if config.train.batch_size is not None:
        raise InputError(
            f"train.batch_size: {config.train.batch_size} is not used by optim.base=als, which takes all training "
            "entries in every step; leave it out, or set train.batch_size=null"
        )
    if optim.clip_norm is not None:
        raise InputError(
            f"optim.clip_norm: {optim.clip_norm} is not used by optim.base=als, which uses no gradient; leave it out"
        )
    if not any(word in rescales.parts for word in words):
        _refuse_rate(optim)


def _refuse_rate(optim: Any) -> None:
    for key in ("lr", "schedule", "warmup_steps", "final_lr"):
        value = getattr(optim, key)
        if value != type(optim).model_fields[key].default:
            raise InputError(
                f"optim.{key}: {value} is not used by optim.base=als, which has no learning rate; leave it out (with "
                "optim.method=das, nbar or obar it is the rate of the rescaling)"
            )


def build_sam(optim: Any, inner: Any, model: Any) -> Any:
    """SAM around `inner`."""
    from distsam.optim import SAM

    return SAM(inner, optim.rho, optim.scope, model=model, max_skipped=optim.max_skipped)


def build_das(optim: Any, base: Any, networks: Any) -> Any:
    """DAS around `base`."""
    from distsam.optim import DAS

    return DAS(
        base,
        networks,
        alpha=optim.alpha,
        norm=optim.norm,
        lambda_max=optim.lambda_max,
        max_skipped=optim.max_skipped,
    )


def build_nbar(optim: Any, base: Any, networks: Any) -> Any:
    """BAR by gradient norms around `base`."""
    from distsam.optim import BAR

    return BAR(base, networks, alpha=optim.alpha, rule="nbar", max_skipped=optim.max_skipped)


def build_obar(optim: Any, base: Any, networks: Any) -> Any:
    """BAR by core norms around `base`."""
    from distsam.optim import BAR

    return BAR(base, networks, alpha=optim.alpha, rule="obar", max_skipped=optim.max_skipped)
