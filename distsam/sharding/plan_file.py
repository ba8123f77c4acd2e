"""A placement as text: what a file of it holds, and what of a file is wrong, by its key."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from distsam.errors import InputError

_KEYS = ("name", "axes", "data_axes", "parameters", "routed")
_PARAMETER_KEYS = ("name", "shape", "cut")
_ROUTED_KEYS = ("axis", "bounds")


def text_of(fields: Mapping[str, Any]) -> str:
    """JSON, one line a parameter.

    Args:
        fields: of a ShardPlan, by their names.
    """
    cuts = dict(fields["placements"])
    lines = [
        json.dumps({"name": name, "shape": shape, "cut": cuts[name]}, ensure_ascii=False)
        for name, shape in fields["shapes"]
    ]
    routed = fields["routed"]
    head = {
        "name": fields["name"],
        "axes": fields["axes"],
        "data_axes": fields["data_axes"],
        "routed": None if routed is None else dict(zip(_ROUTED_KEYS, routed, strict=True)),
    }
    rows = [f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}," for key, value in head.items()]
    body = ",\n".join(f"    {line}" for line in lines)
    return "\n".join(["{", *rows, '  "parameters": [', *([body] if body else []), "  ]", "}"]) + "\n"


def fields_of(text: str, source: str) -> dict[str, Any]:
    """The fields of a ShardPlan, of the right types; what they say together the ShardPlan checks.

    Args:
        text: what `text_of` gave, maybe changed since.
        source: what messages call it: the file.

    Raises:
        InputError: it is no JSON, or a key is missing, unknown, or holds a value of another kind.
    """
    return _Reader(source).fields(text)


def check_axes(fields: Mapping[str, Any], source: str) -> None:
    """InputError where an axis of one rank beside others cuts parameters, or is no data axis: it does nothing.

    Plans of bonds or rows on all ranks keep a data axis of one rank, which cuts nothing.

    Args:
        fields: of a ShardPlan, by their names.
        source: what messages call it.
    """
    axes = fields["axes"]
    for place, (name, size) in enumerate(axes):
        cuts = any(dims[place : place + 1] not in ((), (None,)) for _, dims in fields["placements"])
        if size == 1 and len(axes) > 1 and (cuts or name not in fields["data_axes"]):
            others = ", ".join(other for other, _ in axes if other != name)
            raise InputError(f"{source}: axes: {name} has 1 rank beside {others}; leave it out, in every cut too")


class _Reader:
    """Reads one file, whose name stands before every message."""

    def __init__(self, source: str) -> None:
        self._source = source

    def fields(self, text: str) -> dict[str, Any]:
        try:
            raw = json.loads(text)
        except ValueError as error:  # a RecursionError has no message worth showing
            self._wrong("", f"is no JSON ({error})")
        except RecursionError:
            self._wrong("", "is nested too deep")
        found = self._mapping(raw, "", _KEYS)
        parameters = [
            self._parameter(item, f"parameters[{n}]") for n, item in enumerate(self._list(found, "parameters"))
        ]
        self._check_unique([name for name, _, _ in parameters])
        return {
            "name": self._word(found["name"], "name"),
            "axes": tuple(self._axis(item, f"axes[{n}]") for n, item in enumerate(self._list(found, "axes"))),
            "data_axes": tuple(self._word(w, f"data_axes[{n}]") for n, w in enumerate(self._list(found, "data_axes"))),
            "shapes": tuple((name, shape) for name, shape, _ in parameters),
            "placements": tuple((name, cut) for name, _, cut in parameters),
            "routed": self._routed(found["routed"]),
        }

    def _axis(self, item: Any, key: str) -> tuple[str, int]:
        if not isinstance(item, list) or len(item) != 2:
            self._wrong(key, f"is {item!r}; give a name and a number of ranks, such as ['shard', 4]")
        return self._word(item[0], f"{key}[0]"), self._number(item[1], f"{key}[1]", 1)

    def _parameter(self, item: Any, key: str) -> tuple[str, tuple[int, ...], tuple[int | None, ...]]:
        found = self._mapping(item, key, _PARAMETER_KEYS)
        name = self._word(found["name"], f"{key}.name")
        shape = tuple(self._number(n, f"{key}.shape") for n in self._list(found, "shape", key))
        cut = tuple(None if d is None else self._number(d, f"{key}.cut") for d in self._list(found, "cut", key))
        return name, shape, cut

    def _routed(self, item: Any) -> tuple[str, tuple[int, ...]] | None:
        if item is None:
            return None
        found = self._mapping(item, "routed", _ROUTED_KEYS)
        bounds = tuple(self._number(n, "routed.bounds") for n in self._list(found, "bounds", "routed"))
        return self._word(found["axis"], "routed.axis"), bounds

    def _check_unique(self, names: Sequence[str]) -> None:
        for n, name in enumerate(names):
            if name in names[:n]:
                self._wrong(f"parameters[{n}].name", f"is {name!r}, which stands there twice")

    def _mapping(self, raw: Any, key: str, keys: Sequence[str]) -> dict[str, Any]:
        if not isinstance(raw, dict):
            self._wrong(key, f"must be an object with {', '.join(keys)}")
        for name in raw:
            if name not in keys:
                self._wrong(f"{key}.{name}".lstrip("."), f"unknown key; there are {', '.join(keys)}")
        for name in keys:
            if name not in raw:
                self._wrong(f"{key}.{name}".lstrip("."), "is missing")
        return raw

    def _list(self, found: Mapping[str, Any], name: str, key: str = "") -> list[Any]:
        if not isinstance(found[name], list):
            self._wrong(f"{key}.{name}".lstrip("."), f"is {found[name]!r}; must be a list")
        return found[name]

    def _word(self, value: Any, key: str) -> str:
        if not isinstance(value, str) or not value:
            self._wrong(key, f"is {value!r}; must be a name")
        return value

    def _number(self, value: Any, key: str, least: int = 0) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            self._wrong(key, f"is {value!r}; must be a whole number of at least {least}")
        return value

    def _wrong(self, key: str, problem: str) -> NoReturn:
        raise InputError(": ".join(filter(None, (self._source, key, problem))))
