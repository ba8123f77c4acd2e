"""The typed form of a run: every key that a config file may hold, its type, range, default and meaning."""

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from distsam.errors import InputError

PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]


class _Section(BaseModel):
    # Strict, because YAML is typed already: "abc" or 1.5 for a whole number is a mistake, never a conversion.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class RunConfig(_Section):
    """Where the run lives and which random numbers it draws."""

    dir: str = Field(default="", description="Run folder; runs/<name of the config file> when not given.")
    seed: int = Field(default=0, ge=0, lt=2**63, description="Seed of the split, the initial cores and the batches.")


class TaskConfig(_Section):
    """What is learnt."""

    kind: Literal["completion"] = Field(default="completion", description="Fit the entries that are there.")


class DataConfig(_Section):
    """Which entries there are, and which of them training may see."""

    source: Literal["covid19_serology", "il2", "kinetic", "indian_pines", "file", "lowrank"] = Field(
        description="A data set that installs with distsam, a file of yours, or a synthetic low-rank tensor."
    )
    path: str | None = Field(default=None, description="The .npy or .npz file of source: file.")
    observed: float = Field(default=0.8, gt=0, le=1, description="Share of the entries that is not held out.")
    validation: float = Field(default=0.1, ge=0, lt=1, description="Share of the observed kept for choosing weights.")
    split: Literal["random", "fibres"] = Field(default="random", description="Hold out entries or whole fibres.")
    fibre_mode: int | None = Field(default=None, ge=0, description="The mode along which fibres are held out.")
    standardise: bool = Field(default=True, description="Shift and scale values by the training entries' mean, std.")
    equation: str | None = Field(default=None, description="lowrank: einsum of the truth's cores.")
    sizes: dict[str, PositiveInt] | None = Field(
        default=None, description="lowrank: size of every letter of the equation."
    )
    noise: float = Field(default=0.0, ge=0, description="lowrank: noise, in units of the truth's standard deviation.")
    seed: int = Field(default=0, ge=0, lt=2**63, description="lowrank: seed of the truth and its noise.")


class NetworkConfig(_Section):
    """The tensor network that is fitted."""

    format: Literal["cp", "tucker", "tt", "tr", "einsum"] = Field(description="How cores are connected.")
    bond_dim: PositiveInt | list[PositiveInt] | None = Field(
        default=None, description="cp, tt, tr: size of the bonds; tt and tr also take one size a bond."
    )
    ranks: list[PositiveInt] | None = Field(default=None, description="tucker: one size a mode.")
    equation: str | None = Field(default=None, description="einsum: cores -> modes, such as 'ia,ab,bj->ij'.")
    sizes: dict[str, PositiveInt] | None = Field(
        default=None, description="einsum: size of every bond; the modes' sizes come from the data."
    )
    init: Literal["gaussian", "data"] = Field(default="gaussian", description="Random start, or a decomposition.")
    init_std: PositiveFloat | None = Field(default=None, description="Std of the start's entries; null: the data's.")
    init_norms: list[PositiveFloat] | None = Field(
        default=None,
        description="Relative start norms, one a core; null: all equal, so that the deviation is 0.",
    )
    dtype: Literal["float32", "float64"] = Field(default="float32", description="Type of the cores.")


class OptimConfig(_Section):
    """How the cores move."""

    method: str = Field(default="sam", description="base, sam, das, nbar, obar, or a sum such as sam+das.")
    base: Literal["sgd", "adam", "adamw"] = Field(default="adam", description="The torch optimizer inside.")
    lr: float = Field(default=1e-3, gt=0, description="Learning rate.")
    momentum: float = Field(default=0.0, ge=0, lt=1, description="sgd: momentum.")
    weight_decay: float = Field(default=0.0, ge=0, description="adamw: decoupled; sgd and adam: L2 in the gradient.")
    rho: float = Field(default=0.05, ge=0, description="sam: radius of the perturbation.")
    alpha: NonNegativeFloat | None = Field(default=None, description="das, nbar, obar: strength of the rescaling.")
    lambda_max: float = Field(default=0.1, gt=0, lt=1, description="das: largest relative rescaling in one step.")
    norm: Literal["cores", "global", "network"] = Field(default="cores", description="das: which norm divides.")
    scope: Literal["global", "network", "core"] = Field(default="global", description="sam: which norm divides.")
    max_skipped: int = Field(default=10, ge=1, description="Non-finite steps in a row that end the run.")


class ShardingConfig(_Section):
    """Where the cores live."""

    plan: Literal["replicate", "fsdp"] = Field(default="replicate", description="Copies, or shards by FSDP2.")
    replicas: int = Field(default=1, ge=1, description="fsdp: copies of the sharded model; must divide the ranks.")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: a GPU if there is one.")


class TrainConfig(_Section):
    """How long, how often, and from where."""

    steps: int = Field(ge=1, description="Number of updates.")
    batch_size: PositiveInt | None = Field(default=None, description="Entries a step over all ranks; null: all.")
    loss: Literal["mean", "sum"] = Field(default="mean", description="Mean or sum of the squared errors.")
    log_every: int = Field(default=100, ge=1, description="Steps between two rows of metrics.jsonl.")
    eval_every: PositiveInt | None = Field(default=None, description="Steps between evaluations; null: log_every.")
    checkpoint_every: PositiveInt | None = Field(default=None, description="null: only at the end.")
    keep_checkpoints: int = Field(default=2, ge=1, description="Checkpoints kept, the last ones.")
    resume: Literal["never", "auto"] = Field(default="never", description="auto: go on from the last checkpoint.")
    early_stopping: PositiveInt | None = Field(
        default=None, description="Evaluations without a better validation R2 after which training ends."
    )
    num_threads: PositiveInt | None = Field(default=None, description="CPU threads a rank; null: torch's choice.")


class WandbConfig(_Section):
    """The mirror of metrics.jsonl at Weights & Biases."""

    mode: Literal["disabled", "offline", "online"] = Field(default="disabled", description="Where rows are mirrored.")
    project: str = Field(default="distsam", description="Project of the run.")
    name: str | None = Field(default=None, description="Name of the run; null: the run folder's name.")
    group: str | None = Field(default=None, description="Group of the run.")


class Config(_Section):
    """One run, complete."""

    run: RunConfig = RunConfig()
    task: TaskConfig = TaskConfig()
    data: DataConfig
    network: NetworkConfig
    optim: OptimConfig = OptimConfig()
    sharding: ShardingConfig = ShardingConfig()
    train: TrainConfig
    wandb: WandbConfig = WandbConfig()


def all_keys() -> list[str]:
    """Every dotted key that a config may hold."""
    return [f"{section}.{key}" for section in Config.model_fields for key in _section_model(section).model_fields]


def validate(raw: dict[str, Any]) -> Config:
    """The typed config, or an InputError that names the first wrong key, unknown keys before others."""
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        faults: list[Any] = list(error.errors(include_url=False))
    fault = next((f for f in faults if f["type"] == "extra_forbidden"), faults[0])
    key = _dotted(fault["loc"])
    raise InputError(_explain(key, fault, [f for f in faults if _dotted(f["loc"]) == key])) from None


def _section_model(section: str) -> type[BaseModel]:
    model = Config.model_fields[section].annotation
    assert isinstance(model, type)
    assert issubclass(model, BaseModel)
    return model


def _dotted(loc: tuple[int | str, ...]) -> str:
    """`network.ranks[1]` from pydantic's location, without the names that it gives to members of a union."""
    parts = loc[:2]
    if len(parts) == 2 and f"{parts[0]}.{parts[1]}" in _union_keys():
        return f"{parts[0]}.{parts[1]}"
    rest = "".join(f"[{part}]" for part in loc[2:] if part != "[key]")
    return ".".join(str(part) for part in parts) + rest


def _union_keys() -> Iterator[str]:
    for key in all_keys():
        section, name = key.split(".")
        members = get_args(_section_model(section).model_fields[name].annotation)
        if len([member for member in members if member is not type(None)]) > 1:
            yield key


def _explain(key: str, fault: Any, same_key: list[Any]) -> str:
    if fault["type"] == "extra_forbidden":
        return f"{key}: unknown key; {_suggestion(key)}"
    if fault["type"] == "missing":
        return f"{key}: is missing; {_description(key)}"
    if _lacks_space(fault):
        return f"{key}: needs a space after each colon, as in {{a: 2}}"
    wanted = " or ".join(dict.fromkeys(_wanted(one) for one in same_key))
    return f"{key}: {_shown(fault['input'])} is not valid; must be {wanted}"


def _lacks_space(fault: Any) -> bool:
    """YAML reads {a:2} as the key 'a:2' without a value."""
    return fault["input"] is None and ":" in str(fault["loc"][-1])


def _suggestion(key: str) -> str:
    known = all_keys()
    section, _, name = key.partition(".")
    siblings = [other for other in known if other.startswith(f"{section}.")]
    by_name = {other.rpartition(".")[2]: other for other in reversed(known)}
    same_name = [by_name[name or section]] if (name or section) in by_name else []
    matches = (
        same_name
        or get_close_matches(key, siblings, n=1, cutoff=0.75)
        or [by_name[m] for m in get_close_matches(name or section, by_name, n=1)]
        or get_close_matches(key, siblings, n=1)
        or get_close_matches(section, Config.model_fields, n=1)
    )
    if matches:
        return f"did you mean {matches[0]}?"
    return f"known here: {', '.join(siblings or Config.model_fields)}"


def _description(key: str) -> str:
    section, _, name = key.partition(".")
    if not name:
        required = [n for n, field in _section_model(section).model_fields.items() if field.is_required()]
        return f"give at least {', '.join(f'{section}.{n}' for n in required)}"
    field = _section_model(section).model_fields[name]
    return f"{field.description}{_choices(field.annotation)}"


def _choices(annotation: Any) -> str:
    values = [value for value in get_args(annotation) if isinstance(value, str)]
    return f" One of {', '.join(values)}" if values else ""


_TYPES = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "a text (quote numbers)",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a section with keys",
}
_BOUNDS = {
    "greater_than_equal": (">=", "ge"),
    "greater_than": (">", "gt"),
    "less_than_equal": ("<=", "le"),
    "less_than": ("<", "lt"),
}


def _wanted(fault: Any) -> str:
    if fault["type"] in _BOUNDS:
        sign, name = _BOUNDS[fault["type"]]
        return f"{sign} {fault['ctx'][name]:g}"
    if fault["type"] == "literal_error":
        choices = f"one of {fault['ctx']['expected'].replace(chr(39), '').replace(' or ', ', ')}"
        is_bool = isinstance(fault["input"], bool)
        return choices + (" (YAML reads on and yes as True, off and no as False)" if is_bool else "")
    if fault["type"] == "float_type" and str(fault["input"]).lower().strip("+-") in ("nan", "inf", "infinity"):
        return _TYPES["finite_number"]
    return _TYPES.get(fault["type"], fault["msg"])


def _shown(value: Any) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
