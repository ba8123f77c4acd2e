"""Tensors as tables: a row for each entry, a column of labels for each mode, a column of values; CSV, Parquet, Feather.

The one importer of pyarrow.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from distsam.errors import ArgumentError
from distsam.tasks.entries import Entries, Origin, entries_from_coordinates
from distsam.tasks.files import regular_file
from distsam.tasks.labels import Mode

try:
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import csv, feather, parquet
except ImportError as error:
    raise ArgumentError(
        "source", f"pyarrow is not installed or cannot be imported ({error}); pip install 'distsam[tables]'"
    ) from None

SUFFIXES = (".csv", ".tsv", ".txt", ".parquet", ".feather", ".arrow")
_DELIMITERS = ",;\t|"
_SHOWN = 5
# Where a column of values is read as text; the same that count as no value where it is read as numbers.
_NO_VALUE = frozenset(csv.ConvertOptions().null_values)
_KINDS = "a CSV, Parquet or Feather file"


def read_table(path: str | Path, value: str | None = None, modes: Sequence[str] | None = None) -> Entries:
    """The entries in a table: its labels become positions, in their order.

    Args:
        path: the file; the end of its name decides how it is read.
        value: the column of values; None: the only column of real numbers, or the one that is called "value".
        modes: the columns of labels, in the order of the tensor's modes; None: all others.

    Returns:
        Entries with labels; a row without a value is no known entry.

    Raises:
        ArgumentError: of `path`, `value` or `modes`: no such file or column, columns among which cannot be chosen, an
            empty label, a value that is no number, an entry that is there twice; the row is named (the first after the
            header is row 1).
    """
    origin = Origin("path", repr(str(path)))
    file = regular_file(path, origin, _KINDS)
    table = _read(file, origin, keep_text=lambda schema: _columns(schema, value, modes, origin)[0])
    names, value_name = _columns(table.schema, value, modes, origin)
    columns = [_encoded(table.column(name), name, origin) for name in names]
    values = _numbers(table.column(value_name), value_name, origin)
    indices = np.stack([positions for positions, _ in columns], axis=1)
    found = tuple(Mode(name, labels) for name, (_, labels) in zip(names, columns, strict=True))
    shape = tuple(len(mode.labels) for mode in found)
    _refuse_twice(indices, shape, found, origin)
    entries = entries_from_coordinates(indices, values, shape, name=file.stem, origin=origin)
    without = np.flatnonzero(np.isnan(values)) + 1
    notes = (f"{len(without)} rows have no {value_name!r} ({_rows(without)}): they are entries to predict",)
    return Entries(entries.indices, entries.values, shape, file.stem, found, value_name, notes if len(without) else ())


def read_labels(path: str | Path, modes: Sequence[Mode], argument: str = "path") -> np.ndarray:
    """The entries that the rows of a table name; other columns than those of the modes are passed over.

    Args:
        path: the file.
        modes: of the tensor.

    Returns:
        (N, order) int64.

    Raises:
        ArgumentError: of `argument`: no such file or column, or a label that the tensor does not have.
    """
    origin = Origin(argument, repr(str(path)))
    file = regular_file(path, origin, _KINDS)
    table = _read(file, origin, keep_text=lambda schema: [mode.name for mode in modes if mode.name in schema.names])
    columns = []
    for mode in modes:
        if mode.name not in table.column_names:
            raise origin.error(f"has no column {mode.name!r}; it has {_listed(table.column_names)}")
        positions, labels = _encoded(table.column(mode.name), mode.name, origin)
        try:
            of_mode = [mode.position_of(label) for label in labels]
        except ValueError as error:
            raise origin.error(str(error)) from None
        columns.append(np.asarray(of_mode, dtype=np.int64)[positions])
    return np.stack(columns, axis=1)


def read_texts(path: str | Path, text: str, label: str) -> tuple[list[str], np.ndarray, tuple[Any, ...]]:
    """Texts and their labels, a row for each.

    Args:
        path: the file; the end of its name decides how it is read.
        text, label: the columns.

    Returns:
        N texts, (N,) int64 positions of their labels, and the labels in their order.

    Raises:
        ArgumentError: of `path`, `text` or `label`: no such file or column, or a row without a text or a label.
    """
    origin = Origin("path", repr(str(path)))
    file = regular_file(path, origin, _KINDS)
    table = _read(file, origin, keep_text=lambda schema: [text, label])
    for argument, name in (("text", text), ("label", label)):
        if name not in table.column_names:
            raise ArgumentError(
                argument, f"{name!r} is no column of {origin.place}; it has {_listed(table.column_names)}"
            )
    column = table.column(text)
    if not pa.types.is_string(column.type) and not pa.types.is_large_string(column.type):
        raise ArgumentError("text", f"column {text!r} of {origin.place} holds {column.type}; it must be text")
    empty = np.flatnonzero(pc.equal(pc.utf8_length(pc.fill_null(column, "")), 0).to_numpy()) + 1
    if len(empty):
        raise origin.error(f"column {text!r} has no text in {_rows(empty)}")
    return (column.to_pylist(), *_encoded(table.column(label), label, origin))


def labelled_table(modes: Sequence[Mode], indices: np.ndarray, more: Mapping[str, Any]) -> Any:
    """A pyarrow Table with a row for each entry: its labels, then the columns `more`, name -> (N,)."""
    columns: dict[str, Any] = {}
    for mode, positions in zip(modes, indices.T, strict=True):
        columns[mode.name] = pa.DictionaryArray.from_arrays(
            pa.array(positions), pa.array(mode.labels)
        ).dictionary_decode()
    return pa.table({**columns, **{_free(name, columns): pa.array(values) for name, values in more.items()}})


def save_frame(frame: Any, target: Path) -> None:
    """Write a data frame (pandas, polars, pyarrow, anything with the Arrow interface) as Parquet.

    Raises:
        ArgumentError: of `data`: it is none.
    """
    try:
        table = pa.table(frame)
    except (TypeError, ValueError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:200]
        raise ArgumentError(
            "data", f"a {type(frame).__name__} is neither an array nor a table with a column for each mode ({reason})"
        ) from None
    parquet.write_table(table, target)


def write_table(
    stream: BinaryIO, suffix: str, modes: Sequence[Mode], indices: np.ndarray, more: Mapping[str, Any]
) -> None:
    """A row for each entry: its labels, then the columns `more`, name -> (N,).

    Args:
        stream: to write into.
        suffix: .csv, .parquet or .feather.
        modes: of the tensor.
        indices: (N, order).
        more: further columns.
    """
    table = labelled_table(modes, indices, more)
    if suffix == ".csv":
        csv.write_csv(table, stream, csv.WriteOptions(quoting_style="needed"))
    elif suffix == ".parquet":
        parquet.write_table(table, stream)
    else:
        feather.write_feather(table, stream)


def _free(name: str, taken: Mapping[str, Any]) -> str:
    while name in taken:
        name += "_"
    return name


def _read(file: Path, origin: Origin, keep_text: Any) -> Any:
    """The table in the file; columns that `keep_text` names, given the schema, keep the text of a CSV as it is."""
    suffix = file.suffix.lower()
    if suffix not in SUFFIXES:
        raise origin.error(f"must end in {', '.join(SUFFIXES)}; the end says how it is read")
    try:
        if suffix == ".parquet":
            table = parquet.read_table(file)
        elif suffix in (".feather", ".arrow"):
            table = feather.read_table(file)
        else:
            table = _read_csv(file, keep_text)
    except ArgumentError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        text = " ".join(str(error).split())[:200]
        raise origin.error(f"cannot be read ({text}); write it again as {_KINDS}") from None
    if not table.num_rows:
        raise origin.error("has no rows; give one for each known entry")
    return table


def _read_csv(file: Path, keep_text: Any) -> Any:
    with file.open("rb") as opened:
        header = opened.readline(2**20).decode("utf-8", "replace")
    parse = csv.ParseOptions(delimiter=max(_DELIMITERS, key=header.count), newlines_in_values='"' in header)
    # The types that the first block suggests: which columns are labels follows from them.
    with csv.open_csv(file, parse_options=parse) as first:
        schema = first.schema
    # As text: 007 is not 7, and a value that is no number is named by its row.
    text = {name: pa.string() for name in schema.names}
    numbers = [field.name for field in schema if pa.types.is_floating(field.type) or pa.types.is_integer(field.type)]
    kept = set(keep_text(schema))
    types = {name: text[name] for name in schema.names if name in kept or name not in numbers}
    convert = csv.ConvertOptions(column_types=types)
    try:
        return csv.read_csv(file, parse_options=parse, convert_options=convert)
    except pa.ArrowInvalid:
        # Numbers in the first block alone; or a line that is none, which is named where one thread reads.
        convert.column_types = text
        alone = csv.ReadOptions(use_threads=False)
        return csv.read_csv(file, read_options=alone, parse_options=parse, convert_options=convert)


def _columns(schema: Any, value: str | None, modes: Sequence[str] | None, origin: Origin) -> tuple[list[str], str]:
    """The columns of labels, and that of values."""
    names = list(schema.names)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise origin.error(f"has two columns {twice[0]!r}; give each its own name")
    for argument, given in (("value", [value] if value is not None else []), ("modes", modes or [])):
        for name in given:
            if name not in names:
                raise ArgumentError(argument, f"{name!r} is no column of {origin.place}; it has {_listed(names)}")
    if value is None:
        value = _value_among(schema, [name for name in names if name not in (modes or [])], origin)
    chosen = list(modes) if modes is not None else [name for name in names if name != value]
    if value in chosen or len(set(chosen)) < len(chosen):
        raise ArgumentError(
            "modes", f"{chosen}: name each column of labels once, and not {value!r}, that of the values"
        )
    for name in chosen:
        if pa.types.is_floating(schema.field(name).type):
            raise ArgumentError(
                "modes",
                f"column {name!r} of {origin.place} holds real numbers, which are no labels, and {value!r} the values; "
                "name the columns of labels",
            )
    if len(chosen) < 2:
        raise origin.error(f"has {len(chosen)} columns of labels beside {value!r}; a tensor needs at least 2")
    return chosen, value


def _value_among(schema: Any, names: Sequence[str], origin: Origin) -> str:
    real = [name for name in names if pa.types.is_floating(schema.field(name).type)]
    called = [name for name in names if name.lower() == "value"]
    found = called or real
    if len(found) == 1:
        return found[0]
    if found:
        what = f"has {len(found)} columns that could be the values: {_listed(found)}"
    else:
        what = f"has no column of real numbers among {_listed(names)}"
    raise ArgumentError("value", f"{origin.place} {what}; name the one of the values")


def _encoded(column: Any, name: str, origin: Origin) -> tuple[np.ndarray, tuple[Any, ...]]:
    """(N,) positions, and the labels in their order."""
    empty = column.is_null()
    if pa.types.is_string(column.type):
        empty = pc.or_(empty, pc.equal(column, ""))
    rows = np.flatnonzero(pc.fill_null(empty, True).to_numpy()) + 1
    if len(rows):
        raise origin.error(f"column {name!r} has no label in {_rows(rows)}; every entry needs one of each mode")
    try:
        encoded = column.combine_chunks().dictionary_encode()
    except pa.ArrowException:
        raise origin.error(
            f"column {name!r} holds {column.type}, which are no labels; use text, dates or integers"
        ) from None
    encoded = encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
    if pa.types.is_dictionary(encoded.type.value_type):
        encoded = encoded.dictionary_decode().dictionary_encode()
    labels = encoded.dictionary
    order = _order(labels)
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    return place[encoded.indices.to_numpy(zero_copy_only=False)], tuple(labels.take(pa.array(order)).to_pylist())


def _order(labels: Any) -> np.ndarray:
    """Whole numbers that a CSV holds as text are in the order of numbers."""
    if pa.types.is_string(labels.type) and pc.all(pc.match_substring_regex(labels, "^(0|-?[1-9][0-9]{0,17})$")).as_py():
        labels = labels.cast(pa.int64())
    order: np.ndarray = pc.sort_indices(labels).to_numpy()
    return order.astype(np.int64)


def _numbers(column: Any, name: str, origin: Origin) -> np.ndarray:
    """(N,) float64, NaN where there is no value."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        texts = column.to_pylist()
        texts = [None if text in _NO_VALUE else text for text in texts]
        bad = [row for row, text in enumerate(texts, 1) if text is not None and not _is_number(text)]
        if bad:
            hint = "; write decimals with a point" if "," in texts[bad[0] - 1] else ""
            raise origin.error(f"column {name!r} holds {texts[bad[0] - 1]!r} in {_rows(bad)}, which is no number{hint}")
        numbers = np.array([np.nan if text is None else float(text) for text in texts])
    else:
        try:
            numbers = column.cast(pa.float64()).to_numpy()
        except pa.ArrowException:
            raise origin.error(f"column {name!r} holds {column.type}; the values must be numbers") from None
    infinite = np.flatnonzero(np.isinf(numbers)) + 1
    if len(infinite):
        raise origin.error(f"column {name!r} is infinite in {_rows(infinite)}; leave the value out where there is none")
    return numbers


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _refuse_twice(indices: np.ndarray, shape: tuple[int, ...], modes: Sequence[Mode], origin: Origin) -> None:
    """Names the rows of an entry that is there twice."""
    order = np.lexsort(indices.T)
    same = np.flatnonzero((np.diff(indices[order], axis=0) == 0).all(axis=1))
    if len(same):
        first, second = sorted(order[same[0] : same[0] + 2].tolist())
        labels = ", ".join(str(mode.labels[i]) for mode, i in zip(modes, indices[first], strict=True))
        more = f", and {len(same) - 1} more rows repeat an entry" if len(same) > 1 else ""
        raise origin.error(
            f"rows {first + 1} and {second + 1} are both the entry ({labels}){more}; keep one value for each"
        )


def _rows(rows: Sequence[int] | np.ndarray) -> str:
    shown = ", ".join(str(row) for row in rows[:_SHOWN])
    more = len(rows) - _SHOWN
    return f"row{'s' if len(rows) > 1 else ''} {shown}{f' and {more} more' if more > 0 else ''}"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[: 2 * _SHOWN])
    return shown + (" ..." if len(names) > 2 * _SHOWN else "")
