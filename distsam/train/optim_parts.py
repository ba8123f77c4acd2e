"""The keys of base optimizers, ascents and rescales, and how each is built."""

from typing import Annotated, Any, ClassVar, Literal

from distsam.train.seams import Field, Section, Shape

# A number, or the word by which it follows from the weights at the start.
Strength = Annotated[float, Field(ge=0)] | Literal["auto"]


class SGDKeys(Section):
    """base: sgd."""

    momentum: float = Field(default=0.0, ge=0, lt=1, description="Momentum.")


class AdamKeys(Section):
    """base: adam and adamw take no keys of their own."""


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
