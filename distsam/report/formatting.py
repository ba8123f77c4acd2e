"""Numbers as people read them."""

from typing import Any

from distsam.runs.numbers import is_finite

DASH = "-"


def shown(value: Any, digits: int = 4) -> str:
    """`value` with `digits` digits, plain enough to be copied into a spreadsheet; a dash where it is no finite one."""
    if isinstance(value, bool) or not is_finite(value):
        return DASH
    return str(value) if isinstance(value, int) else f"{value:.{digits}g}"


def bytes_shown(value: Any) -> str:
    """A number of bytes in MiB or GiB."""
    if not is_finite(value):
        return DASH
    mib = value / 2**20
    return f"{mib / 1024:.2f} GiB" if mib >= 1024 else f"{mib:.1f} MiB"


def text_shown(value: Any) -> str:
    """A setting as it stands in the config: null, true, a number in full, or a text."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(text_shown(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {text_shown(item)}" for key, item in value.items()) + "}"
    return str(value)
