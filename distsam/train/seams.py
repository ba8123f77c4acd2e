"""How a word in a config becomes code: a part adds keys to a section and says how it is built."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar

# The one importer of pydantic; the keys of parts take Field and the rest from here.
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, create_model, field_validator

from distsam.errors import InputError
from distsam.train.keys_of_arguments import arguments_as_keys


class Section(BaseModel):
    """Keys of one section of a config, with their types, ranges, defaults and meaning.

    A part's own keys are such a class too; the section of a run is composed of the common keys and those of the parts
    that were chosen. What can only be wrong together is looked at in `check`, in the class that owns the keys.
    """

    # Strict, because YAML is typed already: "abc" or 1.5 for a whole number is a mistake, never a conversion.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    # Keys that may be given although the chosen part does not use them: a sweep over the word changes that key alone.
    SWEPT: ClassVar[tuple[str, ...]] = ()
    # Keys that may be the word AUTO -> what gives the number, from the section and the whole model at its start.
    RULES: ClassVar[Mapping[str, Callable[[Any, Any], float]]] = {}

    def check(self) -> None:
        """Raise ArgumentError(key, problem) where keys that are right one by one do not fit together."""


@dataclass(frozen=True)
class Part:
    """One member of a seam.

    Args:
        word: what the config calls it.
        keys: the keys that it adds to the section.
        build: makes it from its section; the arguments are those of its seam. Imports what is heavy only when called:
            a misspelt key need not wait for torch.
    """

    word: str
    keys: type[Section]
    build: Callable[..., Any]


__all__ = [
    "AUTO",
    "BasePart",
    "EnginePart",
    "Field",
    "Part",
    "PrivateAttr",
    "Seam",
    "Search",
    "Section",
    "SectionForm",
    "Shape",
    "SumSeam",
    "TaskPart",
    "TrackerPart",
    "ValidationError",
    "create_model",
    "field_validator",
]

# In place of a number: it follows from the model at its start.
AUTO = "auto"
# The course of a value over the steps of a run.
Shape = Literal["constant", "linear", "cosine"]

AnyPart = TypeVar("AnyPart", bound=Part)


class Seam(Generic[AnyPart]):
    """The parts among which one key of a section chooses.

    Args:
        section, key: where the config names the part.
    """

    def __init__(self, section: str, key: str) -> None:
        self.section, self.key = section, key
        self.parts: dict[str, AnyPart] = {}

    def add(self, part: AnyPart) -> None:
        """Register `part` under its word; the word must be free."""
        if part.word in self.parts:
            raise ValueError(f"{self.section}.{self.key}: there is a part {part.word!r} already")
        self.parts[part.word] = part

    def chosen(self, section: Any) -> AnyPart:
        """The part that a checked section names."""
        return self.parts[getattr(section, self.key)]

    def named(self, raw: Mapping[str, Any], default: Any) -> tuple[AnyPart, ...]:
        """The part that unchecked keys name, if there is one of that word."""
        word = raw.get(self.key, default)
        return (self.parts[word],) if isinstance(word, str) and word in self.parts else ()

    def literal(self) -> Any:
        """The type of the key: one of the words; None where the seam checks its words itself."""
        return Literal[tuple(self.parts)]


class SumSeam:
    """A key whose word may be a sum of parts of several seams, such as sam+das: at most one of each.

    Args:
        section, key: where the config names them.
        seams: whose parts may be summed, the outermost first.
        wrongs: what to say of two parts of each seam: "rescales" gives "'das+nbar' rescales twice".
        example: a sum, for messages.
        alone: the word for none of them, if there is one.
        of_file: the part of a word that names a file, by its suffix, if there is one.
    """

    def __init__(
        self,
        section: str,
        key: str,
        seams: Sequence[Seam[Part]],
        wrongs: Sequence[str],
        example: str,
        alone: str | None = None,
        of_file: tuple[str, Part] | None = None,
    ) -> None:
        self.of_file = of_file
        self.section, self.key = section, key
        self.seams, self.alone, self._wrongs, self._example = tuple(seams), alone, tuple(wrongs), example

    @property
    def parts(self) -> dict[str, Part]:
        """All parts that may be summed."""
        return {word: part for seam in self.seams for word, part in seam.parts.items()}

    def split(self, text: str) -> tuple[Part, ...]:
        """The parts of `text`, outermost seam first, none for the word that stands alone.

        Raises:
            InputError: an unknown part, one named twice, or two of one seam.
        """
        if self.of_file is not None and text.endswith(self.of_file[0]):
            return (self.of_file[1],)
        words = [word.strip() for word in text.split("+")]
        known = [*([] if self.alone is None else [self.alone]), *self.parts]
        where = f"{self.section}.{self.key}: {text!r}"
        for word in words:
            if word not in known:
                sums = f"or a sum such as {self._example}{self._file()}"
                raise InputError(f"{where} is unknown; must be one of {', '.join(known)}, {sums}")
        if len(set(words)) < len(words):
            raise InputError(f"{where} names a part twice; name each once")
        if self.alone in words and len(words) > 1:
            raise InputError(f"{where} is no sum; {self.alone} stands alone")
        for seam, wrong in zip(self.seams, self._wrongs, strict=True):
            if len([word for word in words if word in seam.parts]) > 1:
                raise InputError(f"{where} {wrong} twice; give one of {', '.join(seam.parts)}")
        return tuple(part for word, part in self.parts.items() if word in words)

    def _file(self) -> str:
        return "" if self.of_file is None else f", or a file *{self.of_file[0]}"

    def named(self, raw: Mapping[str, Any], default: Any) -> tuple[Part, ...]:
        """The parts that unchecked keys name; see `split` for what is raised."""
        text = raw.get(self.key, default)
        return self.split(text) if isinstance(text, str) else ()

    def literal(self) -> None:
        """None: `split` checks the words."""


AnySeam = Seam[Part] | SumSeam


@dataclass(frozen=True)
class SectionForm:
    """What a section may hold: common keys, keys of the parts that its seams choose, keys that others add.

    Args:
        name: of the section.
        common: the keys that are always there.
        seams: each chooses by one of the common keys.
        added: further keys, from the part of another section.
    """

    name: str
    common: type[Section]
    seams: tuple[AnySeam, ...] = ()
    added: tuple[type[Section], ...] = field(default=())

    def model(self, raw: Mapping[str, Any]) -> type[Section]:
        """The section's type for the parts that `raw` names."""
        bases = [part.keys for part in self._named(raw)] + list(self.added) + [self.common]
        own = {key for base in bases for key in base.model_fields}
        fields: dict[str, Any] = {}
        for seam in self.seams:
            if (words := seam.literal()) is not None:
                fields[seam.key] = (words, copy(self.common.model_fields[seam.key]))
        for part in self._all_parts():
            for key in part.keys.SWEPT:
                if key not in own:
                    fields[key] = _optional(part.keys, key)
        # A class once: two parts may share it.
        return create_model(self.name.capitalize(), __base__=tuple(dict.fromkeys(bases)), **fields)

    def cleaned(self, raw: Mapping[str, Any], model: type[Section]) -> dict[str, Any]:
        """`raw` without keys that are unset, or at their default, and belong to parts that were not chosen.

        Raises:
            InputError: such a key has a value: it would do nothing.
        """
        kept = {}
        for key, value in raw.items():
            if key in model.model_fields:
                # null for a key that has no default says that it is not given.
                if value is not None or not model.model_fields[key].is_required():
                    kept[key] = value
                continue
            owners = self._owners(key)
            if not owners:
                kept[key] = value  # unknown, which the validation says
            elif value is not None and value != owners[0][1].keys.model_fields[key].default:
                raise InputError(self._why_unused(key, value, raw, model, owners))
        return kept

    def unused(self, section: Section) -> Iterator[str]:
        """One line for each swept key that was given a value and is used by none of the parts that were chosen.

        None where those use no such key at all: a plain run beside the others, with the same config, is no mistake.
        """
        used = {key for part in self._named(section.model_dump()) for key in part.keys.model_fields}
        swept = dict.fromkeys(key for part in self._all_parts() for key in part.keys.SWEPT)
        for key in swept if used.intersection(swept) else ():
            value, default = getattr(section, key), type(section).model_fields[key].default
            if key not in used and value != default:
                [(seam, _), *_] = owners = self._owners(key)
                yield (
                    f"{self.name}.{key}: {value} is not used by {self.name}.{seam.key}={getattr(section, seam.key)}; "
                    f"it is for {_words(owners)}"
                )

    def key_names(self) -> list[str]:
        """Every key that the section may hold, with any parts."""
        models = [self.common, *self.added, *(part.keys for part in self._all_parts())]
        return list(dict.fromkeys(key for model in models for key in model.model_fields))

    def fields_of(self, key: str) -> list[Any]:
        """pydantic's descriptions of `key`, one for each part that has it; none for an unknown key."""
        models = [self.common, *self.added, *(part.keys for part in self._all_parts())]
        return [model.model_fields[key] for model in models if key in model.model_fields]

    def chooser_of(self, key: str) -> AnySeam | None:
        """The seam whose parts own `key`; None for a common key."""
        owners = self._owners(key)
        return None if key in self.common.model_fields or not owners else owners[0][0]

    def owners_of(self, key: str) -> list[str]:
        """The words of the parts that have `key`; none for one that is always there."""
        return [] if key in self.common.model_fields else [part.word for _, part in self._owners(key)]

    def _named(self, raw: Mapping[str, Any]) -> list[Part]:
        defaults = {key: info.default for key, info in self.common.model_fields.items()}
        return [part for seam in self.seams for part in seam.named(raw, defaults[seam.key])]

    def _all_parts(self) -> list[Part]:
        return [part for seam in self.seams for part in seam.parts.values()]

    def _owners(self, key: str) -> list[tuple[AnySeam, Part]]:
        return [(s, part) for s in self.seams for part in s.parts.values() if key in part.keys.model_fields]

    def _why_unused(
        self,
        key: str,
        value: Any,
        raw: Mapping[str, Any],
        model: type[Section],
        owners: list[tuple[AnySeam, Part]],
    ) -> str:
        seam = owners[0][0]
        word = raw.get(seam.key, self.common.model_fields[seam.key].default)
        taken = [k for k in model.model_fields if self.chooser_of(k) is seam]
        takes = f", and {word} takes {' and '.join(taken)}" if taken else ""
        return (
            f"{self.name}.{key}: {value!r} is not used by {self.name}.{seam.key}={word}; it is for {_words(owners)}"
            f"{takes}; leave it out, or set {self.name}.{key}=null"
        )


def _words(owners: list[tuple[AnySeam, Part]]) -> str:
    return ", ".join(part.word for _, part in owners)


def _optional(keys: type[Section], key: str) -> tuple[Any, Any]:
    """A part's key where the part was not chosen: it may be left out."""
    info = copy(keys.model_fields[key])
    if info.is_required():
        info.default = None
        return (info.annotation | None, info)  # type: ignore[operator]
    return (info.annotation, info)


@dataclass(frozen=True)
class BasePart(Part):
    """A part of the seam of base optimizers.

    Args:
        solves: it solves for the weights instead of stepping along gradients: it keeps no state and knows no learning
            rate, every rank holds all weights, and `build` is given the model and the task.
        check: raises InputError where keys of several sections do not fit together.
    """

    solves: bool = False
    check: Callable[[Any], None] = lambda config: None


@dataclass(frozen=True)
class EnginePart(Part):
    """A part of the seam of engines.

    Args:
        plan: gives the plan in place of sharding.plan, where the engine itself puts weights in their places; else None.
        check: raises InputError where keys of several sections do not fit together.
        prepare: raises InputError where this process cannot build it; without collectives.
        describe: what of it a run says at its start; "" for nothing.
    """

    plan: Callable[[Any], Any] | None = None
    check: Callable[[Any], None] = lambda config: None
    prepare: Callable[[Any], None] = lambda config: None
    describe: Callable[[Any], str] = lambda config: ""


@dataclass(frozen=True)
class Search:
    """Where to look for good settings of a task.

    Args:
        spaces: (config, task) -> the space that a search varies when its user names none; key -> Space.
        settings: (values of such keys, config, task) -> dotted key -> value, as the config takes them.
        first: (config, task) -> values of some such keys that are worth to be tried before any others.
    """

    spaces: Callable[[Any, Any], dict[str, Any]]
    settings: Callable[[Mapping[str, Any], Any, Any], dict[str, Any]]
    first: Callable[[Any, Any], list[dict[str, Any]]]


@dataclass(frozen=True)
class TrackerPart(Part):
    """A part of the seam of trackers; its word names a section of its own.

    Args:
        prepare: given that section and the run folder, raises ArgumentError where it could not be built, before
            anything is written; on rank 0 alone.
    """

    prepare: Callable[[Any, Path], None] = lambda section, folder: None


@dataclass(frozen=True)
class TaskPart(Part):
    """A part of the seam of tasks, which may bring sections of its own, and keys to others.

    Args:
        sections: of the task alone, such as data and network.
        adds: section -> keys that stand there beside the common ones.
        check: raises InputError where keys of several sections do not fit together.
        origin: (key, value) of where the data come from, for messages about them.
        arguments: arguments of the task and its methods -> the keys by which they are given; others are keys of
            `arguments_section`.
        search: where to look for good settings; None: learning rate and decay alone.
        settles: dotted keys that may be "auto".
        settle: (config, task) -> dotted key -> value for those that are; without collectives.
        refit: () -> dotted key -> value of a second fit, which also takes what the first has kept apart to
            choose weights by; None where there is no such fit.
        is_routable: config -> True if the data can go to the ranks that hold their rows of a mode.
        planned: config -> dotted key -> value of a run that is planned only: one of the same shapes, whose start is not
            computed from values, and that starts no process.
    """

    sections: tuple[SectionForm, ...] = ()
    adds: Mapping[str, type[Section]] = field(default_factory=dict)
    check: Callable[[Any], None] = lambda config: None
    origin: Callable[[Any], tuple[str, Any]] = lambda config: ("task.kind", config.task.kind)
    arguments: Mapping[str, str] = field(default_factory=dict)
    arguments_section: str = "task"
    search: Search | None = None
    settles: tuple[str, ...] = ()
    settle: Callable[[Any, Any], Mapping[str, Any]] = lambda config, task: {}
    refit: Callable[[], Mapping[str, Any]] | None = None
    is_routable: Callable[[Any], bool] = lambda config: False
    planned: Callable[[Any], Mapping[str, Any]] = lambda config: {}

    def naming(self) -> AbstractContextManager[None]:
        """Say errors about the task's arguments with their keys."""
        return arguments_as_keys(self.arguments_section, **self.arguments)
