"""Names for tensors with holes: four that come with tensorly, the user's file, a synthetic low-rank one."""

import difflib
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from distsam.errors import ArgumentError
from distsam.tasks.entries import Entries, Origin, entries_from_dense
from distsam.tasks.files import read_entries
from distsam.tensornet.equation import check_sizes, read_equation

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
        ArgumentError: unknown source, an argument that belongs to another source, or a file that cannot be used.
    """
    if source not in SOURCES:
        raise ArgumentError("source", f"{source!r} is unknown; {_suggestion(source)}")
    _refuse_foreign(source, path, equation, sizes)
    if source == "file":
        if path is None:
            raise ArgumentError("path", "is missing; source=file needs the path of a .npy or .npz file")
        return read_entries(path)
    if source == "lowrank":
        if equation is None or sizes is None:
            missing = "equation" if equation is None else "sizes"
            raise ArgumentError(missing, "is missing; source=lowrank needs equation and sizes")
        return lowrank(equation, sizes, noise=noise, seed=seed)
    return entries_from_dense(_load_from_tensorly(source), name=source, origin=Origin("source", source))


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
        ArgumentError: the equation is no einsum of single letters, a size is missing or below 1, or noise < 0.
    """
    cores, modes = read_equation(equation)
    if len(modes) < 2:
        raise ArgumentError("equation", f"{equation!r} has {len(modes)} modes after '->'; a tensor needs at least 2")
    check_sizes(equation, sizes)
    if not (math.isfinite(noise) and noise >= 0):
        raise ArgumentError("noise", f"is {noise}; it must be a finite number, 0 or more")
    rng = np.random.default_rng(seed)
    factors = [rng.standard_normal([sizes[letter] for letter in core]) for core in cores]
    target = np.einsum(equation, *factors, optimize=True)
    spread = float(target.std())
    if spread == 0.0:
        raise ArgumentError("sizes", f"{dict(sizes)} gives a tensor of one entry; at least two are needed")
    target = target / spread + noise * rng.standard_normal([sizes[letter] for letter in modes])
    return entries_from_dense(target, name="lowrank", origin=Origin("source", "lowrank"))


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
    for argument, value, owner in (
        ("path", path, "file"),
        ("equation", equation, "lowrank"),
        ("sizes", sizes, "lowrank"),
    ):
        if value is not None and source != owner:
            shown = dict(value) if isinstance(value, Mapping) else repr(str(value))
            raise ArgumentError(argument, f"{shown} is read only with source={owner}; the source is {source}")
