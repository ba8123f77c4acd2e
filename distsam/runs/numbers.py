"""The one test for finite numbers, and what becomes of the others in JSON, which has no word for them."""

import math
from typing import Any


def is_finite(value: object) -> bool:
    """True for a number that is neither NaN nor infinite; None and texts are no numbers."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int)  # of any length: math.isfinite would have to make a float of it


def without_infinities(value: Any) -> Any:
    """`value` with None in place of every float that is NaN or infinite, in mappings and lists too."""
    if isinstance(value, dict):
        return {key: without_infinities(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_infinities(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
