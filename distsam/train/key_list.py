"""The keys of a config as lines for people, from the classes that check them."""

from collections.abc import Iterator
from typing import Any

from distsam.errors import InputError
from distsam.train.config import section_forms
from distsam.train.parts import TASKS
from distsam.train.seams import SectionForm

COMPLETION = "completion"


def section_names(task: str = COMPLETION) -> list[str]:
    """Of every section that a config of this task.kind may have.

    Raises:
        InputError: there is no such task.
    """
    return list(_forms(task))


def key_lines(section: str | None = None, task: str = COMPLETION) -> Iterator[str]:
    """One line a key: name, default, meaning; and the words of the parts that have it, where not all do.

    Raises:
        InputError: there is no such task.
    """
    for name, form in _forms(task).items():
        if section in (None, name):
            for key in form.key_names():
                yield _line(name, key, form)


def _forms(task: str) -> dict[str, SectionForm]:
    if task not in TASKS.parts:
        raise InputError(f"--task: {task!r} is no task.kind; there are {', '.join(TASKS.parts)}")
    # What a task of the user's own adds stands in the task section alone.
    return {**section_forms({"task": {"target": "package.module:factory"}}), **section_forms({"task": {"kind": task}})}


def _line(section: str, key: str, form: SectionForm) -> str:
    fields = form.fields_of(key)
    field = fields[0]
    default = "required" if field.is_required() else f"default {_shown(field.get_default(call_default_factory=True))}"
    meaning = " or: ".join(dict.fromkeys(one.description for one in fields if one.description))
    owners = form.owners_of(key)
    of = f" [{', '.join(owners)}]" if owners else ""
    return f"{section}.{key} ({default}): {meaning}{of}"


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value) or "none"
