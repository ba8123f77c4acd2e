"""pydantic's findings as one line: the key, its value, and what would be right."""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from distsam.train.seams import SectionForm, ValidationError

Forms = Mapping[str, SectionForm]


def explain(error: ValidationError, raw: Mapping[str, Any], forms: Forms) -> str:
    """What is wrong first: unknown keys before others, because a misspelt key leaves the right one missing."""
    faults: list[Any] = list(error.errors(include_url=False))
    fault = next((f for f in faults if f["type"] == "extra_forbidden"), faults[0])
    key = _dotted(fault["loc"], forms)
    return _explain(key, fault, [f for f in faults if _dotted(f["loc"], forms) == key], raw, forms)


def all_keys(forms: Forms) -> list[str]:
    """Every dotted key that these sections may hold, with any parts."""
    return [f"{name}.{key}" for name, form in forms.items() for key in form.key_names()]


def _dotted(loc: tuple[int | str, ...], forms: Forms) -> str:
    """`network.ranks[1]` from pydantic's location, without the names that it gives to members of a union."""
    parts = loc[:2]
    if len(parts) == 2 and f"{parts[0]}.{parts[1]}" in _union_keys(forms):
        return f"{parts[0]}.{parts[1]}" + "".join(f"[{part}]" for part in loc[2:] if isinstance(part, int))
    rest = "".join(f"[{part}]" for part in loc[2:] if part != "[key]")
    return ".".join(str(part) for part in parts) + rest


def _union_keys(forms: Forms) -> Iterator[str]:
    for name, form in forms.items():
        for key in form.key_names():
            if any(_is_union(field.annotation) for field in form.fields_of(key)):
                yield f"{name}.{key}"


def _is_union(annotation: Any) -> bool:
    members = [member for member in get_args(annotation) if member is not NoneType]
    return get_origin(annotation) in (Union, UnionType) and len(members) > 1


def _explain(key: str, fault: Any, same_key: list[Any], raw: Mapping[str, Any], forms: Forms) -> str:
    if fault["type"] == "extra_forbidden":
        hint = _suggestion(key, forms)
        return f"{key}: unknown {'key' if '.' in key + hint else 'section'}; {hint}"
    if fault["type"] == "missing":
        return f"{key}: is missing; {_needed_by(key, raw, forms)}{_description(key, forms)}"
    if _lacks_space(fault):
        return f"{key}: needs a space after each colon, as in {{a: 2}}"
    if fault["type"] == "value_error":
        return f"{key}: {fault['ctx']['error']}"
    wanted = " or ".join(dict.fromkeys(_wanted(one) for one in same_key))
    return f"{key}: {_shown(fault['input'])} is not valid; must be {wanted}"


def _needed_by(key: str, raw: Mapping[str, Any], forms: Forms) -> str:
    """Which part needs the key, where it is a part's."""
    section, _, name = key.partition(".")
    seam = forms[section].chooser_of(name) if section in forms else None
    if seam is None:
        return ""
    word = raw[section].get(seam.key, forms[section].common.model_fields[seam.key].default)
    return f"{section}.{seam.key}={word} needs it: "


def _lacks_space(fault: Any) -> bool:
    """YAML reads {a:2} as the key 'a:2' without a value."""
    return fault["input"] is None and ":" in str(fault["loc"][-1])


def _suggestion(key: str, forms: Forms) -> str:
    known = all_keys(forms)
    section, _, name = key.partition(".")
    siblings = [other for other in known if other.startswith(f"{section}.")]
    by_name = {other.rpartition(".")[2]: other for other in reversed(known)}
    beside = {other.rpartition(".")[2]: other for other in siblings}
    meant = _MEANT.get((name or section).lower().replace("-", "_"))
    same_name = [by_name[name or section]] if (name or section) in by_name else []
    matches = (
        same_name
        or [by_name[m] for m in (meant,) if m in by_name]
        or [beside[m] for m in get_close_matches(name, beside, n=1)]
        or [by_name[m] for m in get_close_matches(name or section, by_name, n=1)]
        or ([] if siblings else get_close_matches(section, list(forms), n=1))
    )
    if matches:
        return f"did you mean {matches[0]}?"
    return f"known here: {', '.join(siblings or forms)}"


def _description(key: str, forms: Forms) -> str:
    section, _, name = key.partition(".")
    if not name:
        required = [n for n, field in forms[section].common.model_fields.items() if field.is_required()]
        return f"give at least {', '.join(f'{section}.{n}' for n in required)}"
    form = forms[section]
    field = form.fields_of(name)[0]
    words = next((list(seam.parts) for seam in form.seams if seam.key == name), _choices(field.annotation))
    return f"{field.description} One of {', '.join(words)}" if words else f"{field.description}"


def _choices(annotation: Any) -> list[str]:
    return [value for value in get_args(annotation) if isinstance(value, str)]


# What other programs call it.
_MEANT = {
    "wd": "weight_decay",
    "l2": "weight_decay",
    "decay": "weight_decay",
    "learning_rate": "lr",
    "eta": "lr",
    "optimizer": "base",
    "grad_clip": "clip_norm",
    "max_grad_norm": "clip_norm",
    "gradient_clipping": "clip_norm",
    "scheduler": "schedule",
    "lr_schedule": "schedule",
    "warmup": "warmup_steps",
    "epochs": "steps",
    "max_steps": "steps",
    "num_steps": "steps",
    "iterations": "steps",
    "batch": "batch_size",
    "bs": "batch_size",
    "gradient_accumulation": "accumulate",
    "gradient_accumulation_steps": "accumulate",
    "dtype": "precision",
    "patience": "early_stopping",
    "threads": "num_threads",
    "save_every": "checkpoint_every",
    "rank": "bond_dim",
    "bond": "bond_dim",
    "bond_dimension": "bond_dim",
    "file": "path",
    "dataset": "source",
    "output_dir": "dir",
    "out": "dir",
    "random_seed": "seed",
}
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
        expected = fault["ctx"]["expected"].replace("'", "").replace(" or ", ", ")
        choices = f"one of {expected}" if "," in expected else expected
        is_bool = isinstance(fault["input"], bool)
        return choices + (" (YAML reads on and yes as True, off and no as False)" if is_bool else "")
    if fault["type"] == "float_type" and str(fault["input"]).lower().strip("+-") in ("nan", "inf", "infinity"):
        return _TYPES["finite_number"]
    return _TYPES.get(fault["type"], fault["msg"])


def _shown(value: Any) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
