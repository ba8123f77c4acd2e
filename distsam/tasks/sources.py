"""Tensors to complete beside the user's own files: four that come with tensorly, and a synthetic low-rank one."""

import difflib
import math
from collections.abc import Mapping

import numpy as np

from distsam.errors import ArgumentError
from distsam.tasks.entries import Entries, Origin, check_memory, entries_from_dense
from distsam.tasks.labelled import Labelled, labelled
from distsam.tensornet.equation import check_sizes, read_equation

_TENSORLY_LOADERS = {
    "covid19_serology": "load_covid19_serology",
    "il2": "load_IL2data",
    "kinetic": "load_kinetic",
    "indian_pines": "load_indian_pines",
}
BUNDLED = tuple(_TENSORLY_LOADERS)


def load_bundled(source: str) -> Entries:
    """The known entries of a tensor that comes with tensorly; nothing is downloaded.

    Args:
        source: one of `BUNDLED`.

    Raises:
        ArgumentError: about "source": there is none of that name.
    """
    if source not in BUNDLED:
        raise ArgumentError("source", f"{source!r} is unknown; {_suggestion(source)}")
    return entries_from_dense(_load_from_tensorly(source), name=source, origin=Origin("source", source))


def indian_pines_pixels() -> Labelled:
    """The 10,249 pixels of the Indian Pines scene whose ground cover is known: 200 bands each, 16 classes."""
    from tensorly import datasets, to_numpy

    scene = datasets.load_indian_pines()
    spectra = np.array(to_numpy(scene.tensor), dtype=np.float64)
    cover = np.array(scene.ticks[0]).reshape(-1).astype(np.int64)  # where one would look for names of a mode
    is_known = cover > 0
    return labelled(spectra.reshape(len(cover), -1)[is_known], cover[is_known] - 1, "indian_pines")


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
    tensor = lowrank_tensor(equation, sizes, noise=noise, seed=seed)
    return entries_from_dense(tensor, name="lowrank", origin=Origin("source", "lowrank"))


def lowrank_tensor(equation: str, sizes: Mapping[str, int], *, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    """The entries of `lowrank` as a dense float64 array."""
    cores, modes = read_equation(equation)
    if len(modes) < 2:
        raise ArgumentError("equation", f"{equation!r} has {len(modes)} modes after '->'; a tensor needs at least 2")
    check_sizes(equation, sizes)
    if not (math.isfinite(noise) and noise >= 0):
        raise ArgumentError("noise", f"is {noise}; it must be a finite number, 0 or more")
    # The tensor, its noise, and one copy on the way, in float64.
    check_memory(24 * math.prod(sizes[letter] for letter in modes), Origin("sizes", str(dict(sizes))))
    rng = np.random.default_rng(seed)
    factors = [rng.standard_normal([sizes[letter] for letter in core]) for core in cores]
    target = np.einsum(equation, *factors, optimize=True)
    spread = float(target.std())
    if spread == 0.0:
        raise ArgumentError("sizes", f"{dict(sizes)} gives a tensor of one entry; at least two are needed")
    with np.errstate(over="ignore"):  # what becomes infinite is refused right after
        noisy: np.ndarray = target / spread + noise * rng.standard_normal([sizes[letter] for letter in modes])
    return noisy


def _load_from_tensorly(source: str) -> np.ndarray:
    # to_numpy takes the arrays of whatever backend the user has set; a backend set here would outlive us.
    from tensorly import datasets, to_numpy

    data = getattr(datasets, _TENSORLY_LOADERS[source])()
    tensor = np.array(to_numpy(data.tensor), dtype=np.float64)
    if source == "kinetic":  # its missing entries are zeros in the tensor and marked beside it
        tensor[to_numpy(data.missing_values_position).astype(bool)] = np.nan
    return tensor


def _suggestion(source: str) -> str:
    known = f"known: {', '.join(BUNDLED)}"
    nearest = difflib.get_close_matches(str(source).lower(), BUNDLED, n=1)
    return f"did you mean '{nearest[0]}'? ({known})" if nearest else known
