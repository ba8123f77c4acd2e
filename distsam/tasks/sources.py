"""Names for tensors with holes: four that come with tensorly, the user's file, a synthetic low-rank one."""

import difflib
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from distsam.errors import InputError
from distsam.tasks.entries import Entries, entries_from_dense
from distsam.tasks.files import read_entries

_TENSORLY_LOADERS = {
    "covid19_serology": "load_covid19_serology",
    "il2": "load_IL2data",
    "kinetic": "load_kinetic",
    "indian_pines": "load_indian_pines",
}
SOURCES = (*_TENSORLY_LOADERS, "file", "lowrank")


def load_source(
    source: str,
    path: str | Path | None = None,
    *,
    equation: str | None = None,
    sizes: Mapping[str, int] | None = None,
    noise: float = 0.0,
    seed: int = 0,
) -> Entries:
    """The known entries of the tensor of this name; nothing is downloaded.

    Args:
        source: one of `SOURCES`.
        path: the .npy or .npz file; for source `file` only.
        equation, sizes: for source `lowrank` only: the einsum of its cores and the size of each letter.
        noise, seed: see `lowrank`; other sources ignore them.

    Raises:
        InputError: unknown source, an argument that belongs to another source, or a file that cannot be used.
    """
    if source not in SOURCES:
        raise InputError(f"data.source={source!r} is unknown; {_suggestion(source)}")
    _refuse_foreign(source, path, equation, sizes)
    if source == "file":
        if path is None:
            raise InputError("data.path is not set; data.source=file needs the path of a .npy or .npz file")
        return read_entries(path)
    if source == "lowrank":
        if equation is None or sizes is None:
            missing = "data.equation" if equation is None else "data.sizes"
            raise InputError(f"{missing} is not set; data.source=lowrank needs data.equation and data.sizes")
        return lowrank(equation, sizes, noise=noise, seed=seed)
    return entries_from_dense(_load_from_tensorly(source), name=source, origin=f"data.source={source}")


def lowrank(equation: str, sizes: Mapping[str, int], *, noise: float = 0.0, seed: int = 0) -> Entries:
    """A tensor network of standard Gaussian cores, scaled to entries of standard deviation 1, plus noise.

    Args:
        equation: an einsum of the cores with its output written out: "ia,ab,bj->ij".
        sizes: size of every letter.
        noise: standard deviation of the independent Gaussian noise on each entry.
        seed: of all that is drawn.

    Returns:
        All entries; none is missing.

    Raises:
        InputError: the equation is no einsum of single letters, a size is missing or below 1, or noise < 0.
    """
    inputs, output = _parse_equation(equation, sizes)
    if not (math.isfinite(noise) and noise >= 0):
        raise InputError(f"data.noise={noise}; it must be a finite number, 0 or more")
    rng = np.random.default_rng(seed)
    cores = [rng.standard_normal([sizes[letter] for letter in core]) for core in inputs]
    target = np.einsum(equation, *cores, optimize=True)
    spread = float(target.std())
    if spread == 0.0:
        raise InputError(f"data.sizes={dict(sizes)} gives a tensor of one entry; at least two are needed")
    target = target / spread + noise * rng.standard_normal([sizes[letter] for letter in output])
    return entries_from_dense(target, name="lowrank", origin="data.source=lowrank")


def _load_from_tensorly(source: str) -> np.ndarray:
    # to_numpy takes the arrays of whatever backend the user has set; a backend set here would outlive us.
    from tensorly import datasets, to_numpy

    data = getattr(datasets, _TENSORLY_LOADERS[source])()
    tensor = np.array(to_numpy(data.tensor), dtype=np.float64)
    if source == "kinetic":  # its missing entries are zeros in the tensor and marked beside it
        tensor[to_numpy(data.missing_values_position).astype(bool)] = np.nan
    return tensor


def _suggestion(source: str) -> str:
    known = f"known sources: {', '.join(SOURCES)}"
    nearest = difflib.get_close_matches(str(source).lower(), SOURCES, n=1)
    return f"did you mean '{nearest[0]}'? ({known})" if nearest else known


def _refuse_foreign(
    source: str, path: str | Path | None, equation: str | None, sizes: Mapping[str, int] | None
) -> None:
    for key, value, owner in (
        ("data.path", path, "file"),
        ("data.equation", equation, "lowrank"),
        ("data.sizes", sizes, "lowrank"),
    ):
        if value is not None and source != owner:
            shown = dict(value) if isinstance(value, Mapping) else repr(str(value))
            raise InputError(f"{key}={shown} is read only with data.source={owner}; the source is {source}")


def _parse_equation(equation: str, sizes: Mapping[str, int]) -> tuple[list[str], str]:
    left, arrow, output = equation.replace(" ", "").partition("->")
    inputs = left.split(",")
    letters = "".join(inputs) + output
    if not arrow or not all(inputs) or not (letters.isascii() and letters.isalpha()):
        raise InputError(f"data.equation={equation!r} is no einsum of cores; write it like 'ia,ab,bj->ij'")
    for core in (*inputs, output):
        if len(set(core)) < len(core):
            raise InputError(f"data.equation={equation!r} repeats a letter within '{core}'; each may stand there once")
    for letter in output:
        if letter not in left:
            raise InputError(f"data.equation={equation!r}: mode '{letter}' is in no core; each mode needs a core")
    if len(output) < 2:
        raise InputError(f"data.equation={equation!r} has {len(output)} modes after '->'; a tensor needs at least 2")
    _check_sizes(equation, set(letters), sizes)
    return inputs, output


def _check_sizes(equation: str, letters: set[str], sizes: Mapping[str, int]) -> None:
    for letter in sorted(letters):
        if letter not in sizes:
            raise InputError(f"data.sizes={dict(sizes)} lacks '{letter}', which data.equation={equation!r} uses")
    for letter, size in sizes.items():
        if letter not in letters:
            raise InputError(f"data.sizes has '{letter}', which data.equation={equation!r} does not use")
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise InputError(f"data.sizes: '{letter}' is {size!r}; it must be an integer, 1 or more")
