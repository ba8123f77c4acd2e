"""The typed form of a run: the keys that every run has, and how they and those of its parts become one config."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from distsam.errors import ArgumentError, InputError
from distsam.train import parts
from distsam.train.config_errors import explain
from distsam.train.keys_of_arguments import arguments_as_keys
from distsam.train.path_keys import absolute
from distsam.train.seams import (
    Field,
    PrivateAttr,
    Section,
    SectionForm,
    Shape,
    ValidationError,
    create_model,
    field_validator,
)
from distsam.train.secrets import Place, without_secrets

PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Auto = Literal["auto"]
Keys = TypeVar("Keys", bound=Section)


class RunKeys(Section):
    """Where the run lives and which random numbers it draws."""

    dir: str = Field(default="", description="Run folder; runs/<name of the config file> when not given.")

    @field_validator("dir")
    @classmethod
    def _of_somebody(cls, path: str) -> str:
        try:
            return str(Path(path).expanduser()) if path.startswith("~") else path
        except RuntimeError:  # ~name of nobody, which `check` says
            return path

    seed: int = Field(default=0, ge=0, lt=2**63, description="Seed of the split, the initial cores and the batches.")

    def check(self) -> None:
        if "\0" in self.dir:
            raise ArgumentError("dir", f"{self.dir!r} holds a zero byte, which no path may; choose another folder")
        if self.dir.startswith("~"):
            raise ArgumentError("dir", f"{self.dir}: nobody is called so here; write the whole path")


class TaskKeys(Section):
    """What is learnt."""

    kind: str = Field(default="completion", description="completion, classification, or target for your own.")


class OptimKeys(Section):
    """How the weights move."""

    method: str = Field(default="sam", description="base, sam, das, nbar, obar, or a sum such as sam+das.")
    base: str = Field(
        default="adam",
        description="The optimizer inside: one of torch's, or als, which solves for one core after the other.",
    )
    lr: PositiveFloat | Auto = Field(default=1e-3, description="Learning rate; auto: by a rule, from the data.")
    weight_decay: NonNegativeFloat | Auto = Field(
        default=0.0, description="adamw: decoupled; sgd and adam: L2 in the gradient; auto: from the data."
    )
    clip_norm: PositiveFloat | None = Field(
        default=None, description="Largest norm, over all ranks, of the gradient that the base steps along; null: any."
    )
    schedule: Shape = Field(default="constant", description="Course of the learning rate after the warm-up.")
    warmup_steps: int = Field(default=0, ge=0, description="Steps over which the learning rate rises to lr.")
    final_lr: float = Field(default=0.0, ge=0, description="linear, cosine: the rate as the run ends.")
    max_skipped: int = Field(default=10, ge=1, description="Non-finite steps in a row that end the run.")


class ShardingKeys(Section):
    """Where the weights live."""

    plan: str = Field(
        default="auto",
        description="Copies, shards by FSDP2, cores cut along bonds, rows of a mode; a sum of two, such as fsdp+bond; "
        "a file.json of distsam plan --save; auto: the fastest that fits, by formulas.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: a GPU if there is one.")
    memory_gib: PositiveFloat | None = Field(
        default=None, description="Memory of a rank, in GiB; null: the GPU's, or a share of what is free here."
    )
    link: Literal["auto", "nvlink", "infiniband", "ethernet", "loopback"] = Field(
        default="auto", description="What joins the ranks, for plan=auto; auto: by device and number of machines."
    )
    reduce_dtype: Literal["bf16"] | None = Field(
        default=None, description="Type that gradients travel in between ranks; null: their own; bf16: half the bytes."
    )
    fits: Literal["check", "ignore"] = Field(
        default="check", description="check: refuse a run that needs more memory than a rank has; ignore: try it."
    )

    @field_validator("plan")
    @classmethod
    def _of_file(cls, plan: str) -> str:
        """A file is found from wherever the run is resumed."""
        return absolute(plan) if plan.endswith(".json") else plan


class EngineKeys(Section):
    """Who runs forward, backward and step."""

    kind: str = Field(default="native", description="Plain torch, or DeepSpeed.")


class TrainKeys(Section):
    """How long, how often, and from where."""

    steps: int = Field(ge=1, description="Number of updates.")
    accumulate: int = Field(default=1, ge=1, description="Micro-batches a step: less memory, the same update.")
    precision: Literal["float32", "float64", "bf16"] | None = Field(
        default=None, description="float32 or float64 weights, or bf16: float32 weights, passes under autocast."
    )
    log_every: int = Field(default=100, ge=1, description="Steps between two rows of metrics.jsonl.")
    eval_every: PositiveInt | None = Field(default=None, description="Steps between evaluations; null: log_every.")
    checkpoint_every: PositiveInt | None = Field(default=None, description="null: only at the end.")
    keep_checkpoints: int = Field(default=2, ge=1, description="Checkpoints kept, the last ones.")
    resume: Literal["never", "auto"] = Field(default="never", description="auto: go on from the last checkpoint.")
    max_seconds: PositiveFloat | None = Field(
        default=None, description="Wall time of all parts of the run after which it ends; null: any."
    )
    early_stopping: PositiveInt | None = Field(
        default=None, description="Evaluations without a better validation score after which training ends."
    )
    refit: bool = Field(
        default=False, description="Fit once more to all that is not held out, for as many steps as were best."
    )
    alert_deviation: PositiveFloat | None = Field(
        default=None, description="Norm deviation above which a line is printed and W&B alerts; null: none."
    )
    alert_jump: Annotated[float, Field(gt=1)] | None = Field(
        default=None, description="Factor by which the deviation may grow between two rows before an alert."
    )
    alert_share: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None, description="Part of the squared norm that one core may hold before an alert."
    )
    num_threads: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        default=None, description="CPU threads a rank; null: torch's choice."
    )


class Config(Section):
    """One run, complete; the sections of its task and of its trackers stand beside these."""

    run: RunKeys
    task: TaskKeys
    optim: OptimKeys
    sharding: ShardingKeys
    engine: EngineKeys
    train: TrainKeys
    # A secret's place -> its text as the file has it; see train.secrets.
    _secrets: dict[Place, str] = PrivateAttr(default_factory=dict)

    @property
    def secrets(self) -> dict[Place, str]:
        """Where values stand that are not to be written out, each with the text that is."""
        return self._secrets

    def with_secrets(self, secrets: dict[Place, str]) -> "Config":
        """A copy that knows its secrets."""
        config = self.model_copy()
        config._secrets = secrets
        return config

    def shown(self) -> dict[str, Any]:
        """All keys and values, for others to see: secrets as the file has them."""
        shown: dict[str, Any] = without_secrets(self.model_dump(), self._secrets)
        return shown

    def part_keys(self, section: str, kind: type[Keys]) -> Keys:
        """A section as the keys of a part that was chosen there."""
        keys = getattr(self, section)
        assert isinstance(keys, kind), f"{section} was composed without {kind.__name__}"
        return keys


def section_forms(raw: Mapping[str, Any]) -> dict[str, SectionForm]:
    """What every section of this config may hold; the task and the trackers bring sections of their own."""
    task = parts.TASKS.named(task_of(raw), TaskKeys.model_fields["kind"].default)
    added = {section: keys for part in task for section, keys in part.adds.items()}
    common: dict[str, tuple[type[Section], tuple[Any, ...]]] = {
        "run": (RunKeys, ()),
        "task": (TaskKeys, (parts.TASKS,)),
        "optim": (OptimKeys, (parts.BASES, parts.METHODS)),
        "sharding": (ShardingKeys, (parts.PLACEMENTS,)),
        "engine": (EngineKeys, (parts.ENGINES,)),
        "train": (TrainKeys, ()),
    }
    forms = {
        name: SectionForm(name, keys, seams, (added[name],) if name in added else ())
        for name, (keys, seams) in common.items()
    }
    own = {form.name: form for part in task for form in part.sections}
    trackers = {word: SectionForm(word, part.keys) for word, part in parts.TRACKERS.parts.items()}
    return {"run": forms.pop("run"), "task": forms.pop("task"), **own, **forms, **trackers}


def task_of(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The raw task section; where it has a target and no kind, the kind is target."""
    task = raw.get("task") or {}
    if isinstance(task, Mapping) and "target" in task and "kind" not in task:
        return {**task, "kind": "target"}
    return dict(task) if isinstance(task, Mapping) else {}


def _with_target(content: Any, form: SectionForm | None) -> Any:
    """A section that has a target and names no part chooses the part of that word, where there is one."""
    if form is None or not isinstance(content, Mapping) or content.get("target") is None:
        return content
    choosers = [seam.key for seam in form.seams if "target" in seam.parts and seam.key not in content]
    return {**content, **dict.fromkeys(choosers, "target")}


def validate(raw: dict[str, Any]) -> Config:
    """The typed config, or an InputError that names the first wrong key, unknown keys before others."""
    if isinstance(raw.get("task"), Mapping):
        raw = {**raw, "task": task_of(raw)}
    forms = section_forms(raw)
    raw = {name: _with_target(content, forms.get(name)) for name, content in raw.items()}
    _check_task(raw, forms)
    fields: dict[str, Any] = {}
    for name, form in forms.items():
        content = raw.get(name)
        given = content if isinstance(content, Mapping) else {}
        model = form.model(given)
        if content is None or isinstance(content, Mapping):
            raw = {**raw, name: form.cleaned(given, model)}
        fields[name] = (model, ...)
    typed = create_model("Config", __base__=Config, **fields)
    try:
        config = typed.model_validate(raw)
    except ValidationError as error:
        raise InputError(explain(error, raw, forms)) from None
    check_together(config)
    return config


def check_together(config: Config) -> None:
    """InputError where keys that are right one by one do not fit together."""
    for name in type(config).model_fields:
        section = getattr(config, name)
        with arguments_as_keys(name):
            for kind in type(section).__mro__:
                if "check" in vars(kind):
                    vars(kind)["check"](section)
    _check_schedules(config)
    _check_auto(config)
    _check_refit(config)
    parts.TASKS.chosen(config.task).check(config)
    parts.BASES.chosen(config.optim).check(config)
    parts.ENGINES.chosen(config.engine).check(config)


def unused_keys(config: Config) -> Iterator[str]:
    """One line for each key that was given a value and that the chosen parts do not use."""
    for name, form in section_forms(config.model_dump()).items():
        yield from form.unused(getattr(config, name))
    if parts.ENGINES.chosen(config.engine).plan is not None:
        for key in ("plan", "reduce_dtype"):
            value = getattr(config.sharding, key)
            if value != ShardingKeys.model_fields[key].default:
                yield (
                    f"sharding.{key}: {value} is not used by engine.kind={config.engine.kind}, which puts weights in "
                    "their places and adds up gradients itself; it can stay as it is"
                )


def _check_schedules(config: Config) -> None:
    for key, given in config.optim:
        if key.endswith("warmup_steps") and given >= config.train.steps:
            raise InputError(
                f"optim.{key}: {given} is not below train.steps={config.train.steps}: the schedule is longer than "
                "the run; give fewer warm-up steps"
            )
    # What a constant schedule would end at is a key that does nothing.
    for key, shape in (("final_lr", "schedule"), ("final_rho", "rho_schedule"), ("final_alpha", "alpha_schedule")):
        if getattr(config.optim, key, 0.0) and getattr(config.optim, shape) == "constant":
            raise InputError(
                f"optim.{key}: {getattr(config.optim, key)} is not used by optim.{shape}=constant; "
                f"set optim.{shape} to linear or cosine"
            )


def _check_auto(config: Config) -> None:
    settles = parts.TASKS.chosen(config.task).settles
    for key in ("lr", "weight_decay"):
        if getattr(config.optim, key) == "auto" and f"optim.{key}" not in settles:
            raise InputError(
                f"optim.{key}: auto is not known for task.kind={config.task.kind}, of which no rule knows the data; "
                "give a number"
            )


def _check_refit(config: Config) -> None:
    if config.train.refit and parts.TASKS.chosen(config.task).refit is None:
        raise InputError(
            f"train.refit: true is not known for task.kind={config.task.kind}, which says of no data that weights were "
            "chosen by them; leave it out"
        )


def _check_task(raw: Mapping[str, Any], forms: Mapping[str, SectionForm]) -> None:
    kind = task_of(raw).get("kind", TaskKeys.model_fields["kind"].default)
    if not isinstance(kind, str) or kind not in parts.TASKS.parts:
        raise InputError(f"task.kind: {kind!r} is not valid; must be one of {', '.join(parts.TASKS.parts)}")
    for word, part in parts.TASKS.parts.items():
        for form in part.sections:
            if raw.get(form.name) and form.name not in forms:
                raise InputError(f"{_first_of(form.name, raw[form.name])} {_unused(kind, word)}")
        for section, keys in part.adds.items():
            given = raw[section] if isinstance(raw.get(section), Mapping) else {}
            for key in keys.model_fields:
                if key in given and key not in forms[section].key_names():
                    raise InputError(f"{_first_of(section, {key: given[key]})} {_unused(kind, word)}")


def _first_of(section: str, content: Any) -> str:
    """The first key of a section and its value, or the section where it has no keys."""
    if not isinstance(content, Mapping):
        return f"{section}: {content!r}"
    key, value = next(iter(content.items()))
    return f"{section}.{key}: {value!r}"


def _unused(kind: str, word: str) -> str:
    return f"is not used by task.kind={kind}, but by {word}; a task of your own takes what it needs from task.arguments"
