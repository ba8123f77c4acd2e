"""Configs and data files drawn at random: a run that ends as it should, or one line and exit code 2.

pytest tests/e2e/test_generated_input.py -m soak -n 0 -s       # 500 configs and 300 files; the counts are printed
"""

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from command_line import from_file, invoke, small_config

from distsam.train.config import section_forms
from distsam.train.config_errors import all_keys

SEED = 29
VALUES: list[Any] = [
    *(0, 1, 2, 3, -1, 0.5, 1e-300, 1e300, 1e308, -1e308, 10**12, 2**63, 2**200),
    *(
        True,
        False,
        None,
        "",
        "nan",
        "inf",
        ".nan",
        "1e",
        "x",
        "a b",
        "a #b",
        "a: b",
        "~nobody/x",
        "a" * 300,
        "${x}",
        "$",
    ),
    *("base", "sam", "das", "sam+das", "sgd", "adamw", "cp", "tt", "tucker", "file", "fsdp", "cosine", "auto", "cpu"),
    *([], [0], [1, 2, 3], [2, 2, 2], [[1]], ["a"], {}, {"a": 1}, {"r": 2}, {"a": {"b": 1}}),
]
# What would be right and take hours.
LONG = {"train.steps": (10**12, 2**63, 2**200, 1e300, 1e308)}


def outcome(result: Result) -> str:
    """How a run ended: with its result, not finite, or refused."""
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code in (0, 1, 2), result.output
    lines = result.stderr.splitlines()
    assert all(line.startswith("distsam: ") and len(line) < 400 for line in lines), result.stderr
    if result.exit_code == 2:
        assert len(lines) == 1, result.stderr
    if result.exit_code == 1:
        assert "not finite" in lines[-1] or "cannot hold" in lines[-1], result.stderr
    return ("ran", "diverged", "refused")[result.exit_code]


def draw_override(rng: random.Random, keys: list[str]) -> str:
    key = rng.choice(keys)
    value = rng.choice([v for v in VALUES if v not in LONG.get(key, ())])
    if rng.random() < 0.1:
        key = key[: rng.randrange(1, len(key))]
    return f"{key}={value if isinstance(value, str) else json.dumps(value)}"


def run_generated_configs(folder: Path, count: int) -> Counter[str]:
    rng, counts, config = random.Random(SEED), Counter[str](), small_config(folder)
    keys = [key for key in all_keys(section_forms({})) if not key.startswith(("run.dir", "wandb."))]
    for number in range(count):
        overrides = [draw_override(rng, keys) for _ in range(rng.choice([1, 1, 2, 3]))]
        short = [] if any("steps" in override for override in overrides) else ["train.steps=3"]
        try:
            counts[outcome(invoke("train", config, f"run.dir={folder}/c{number}", *short, *overrides))] += 1
        except AssertionError as error:
            raise AssertionError(f"{number}: {overrides}: {error}") from error
    return counts


def draw_array(rng: random.Random) -> Any:
    numbers = np.random.default_rng(rng.randrange(2**32))
    shape = rng.choice([(8, 6, 4), (8, 6, 4), (5, 5), (2, 3, 2, 3), (7,), (), (0, 3), (1, 1, 1), (1, 50), (40, 1)])
    array = numbers.normal(size=shape)
    kind = rng.choice(
        ["plain", "plain", "nan", "inf", "huge", "tiny", "int", "bool", "half", "complex", "text", "same"]
    )
    if kind in ("nan", "inf") and array.size:
        array = np.where(numbers.random(shape) < rng.choice([0.1, 0.5, 1.0]), float(kind), array)
    makers: dict[str, Callable[[], Any]] = {
        "huge": lambda: array * 1e200,
        "tiny": lambda: array * 1e-300,
        "int": lambda: (abs(array) * 10).astype(rng.choice([np.int8, np.int64, np.uint64])),
        "bool": lambda: array > 0,
        "half": lambda: array.astype(np.float16),
        "complex": lambda: array * 1j,
        "text": lambda: array.astype(str),
        "same": lambda: np.full(shape, 3.0),
    }
    return makers.get(kind, lambda: array)()


def draw_file(rng: random.Random, file: Path) -> None:
    kind = rng.choice(["dense", "dense", "named", "coordinates", "coordinates", "cut", "bytes"])
    numbers = np.random.default_rng(rng.randrange(2**32))
    if kind == "named":
        np.savez(file, **{rng.choice(["tensor", "x", "values"]): draw_array(rng)})
    elif kind == "coordinates":
        shape = rng.choice([(8, 6, 4), (2**40, 6, 4), (2**62, 2**62), (8, 6), (0, 3), (8,)])
        order = rng.choice([len(shape), len(shape), 3])
        indices = numbers.integers(-1 if rng.random() < 0.1 else 0, 5, size=(rng.choice([0, 1, 40]), order))
        if rng.random() < 0.7:
            indices = np.unique(indices, axis=0)
        values = numbers.normal(size=len(indices) + rng.choice([0, 0, 0, 1]))
        np.savez(file, indices=indices, values=values, shape=np.array(shape))
    elif kind == "bytes":
        file.write_bytes(rng.randbytes(rng.choice([0, 5, 500])))
    else:
        with file.open("wb") as stream:
            np.save(stream, draw_array(rng))
        if kind == "cut":
            file.write_bytes(file.read_bytes()[: rng.randrange(1, 300)])


def run_generated_files(folder: Path, count: int) -> Counter[str]:
    rng, counts, config = random.Random(SEED), Counter[str](), small_config(folder)
    for number in range(count):
        file = folder / f"f{number}.npz"
        draw_file(rng, file)
        network = rng.choice(
            [["network.format=cp"], ["network.format=tt"], ["data.validation=0"], ["network.init=data"]]
        )
        try:
            options = ["train.steps=3", f"run.dir={folder}/r{number}", *network]
            counts[outcome(invoke("train", config, *from_file(file), *options))] += 1
        except AssertionError as error:
            raise AssertionError(f"{number}: {network}: {error}") from error
    return counts


def test_some_generated_configs_and_files_end_as_they_should(tmp_path: Path) -> None:
    # Of so many one or two are right by chance.
    assert set(run_generated_configs(tmp_path, 40)) >= {"ran", "refused"}
    assert set(run_generated_files(tmp_path, 15)) >= {"ran", "refused"}


@pytest.mark.soak
def test_many_generated_configs_end_as_they_should(tmp_path: Path) -> None:
    counts = run_generated_configs(tmp_path, 500)
    print(dict(counts))
    assert counts.total() == 500


@pytest.mark.soak
def test_many_generated_files_end_as_they_should(tmp_path: Path) -> None:
    counts = run_generated_files(tmp_path, 300)
    print(dict(counts))
    assert counts.total() == 300
