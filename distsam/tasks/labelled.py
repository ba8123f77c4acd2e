"""Labelled examples: inputs of any shape, each with a class."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from distsam.errors import ArgumentError, InputError

TRAIN, VALIDATION, HELDOUT = range(3)


@dataclass(frozen=True, eq=False)
class Labelled:
    """N examples.

    Args:
        inputs: (N, ...) float32, the same shape for each; or int64, for ids of tokens.
        classes: (N,) int64, from 0 to num_classes - 1.
        num_classes: C.
        names: of the classes; empty where they have none.
    """

    inputs: np.ndarray
    classes: np.ndarray
    num_classes: int
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.classes)

    def sha256(self) -> str:
        """Hexadecimal digest of inputs and classes."""
        digest = hashlib.sha256(repr((self.inputs.shape, self.num_classes)).encode())
        digest.update(np.ascontiguousarray(self.inputs).tobytes() + self.classes.tobytes())
        return digest.hexdigest()


def labelled(inputs: Any, classes: Any, origin: str, num_classes: int | None = None) -> Labelled:
    """The examples that a user's arrays are.

    Args:
        inputs: (N, ...) real numbers.
        classes: (N,) integers, from 0.
        origin: the file or function that they are from, for messages.
        num_classes: C; the largest class and one more when None.

    Raises:
        InputError: they differ in length, are empty, not finite, not integers, do not begin at 0, or hold a class
            beyond `num_classes`.
    """
    x, y = np.asarray(inputs), np.asarray(classes)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if x.ndim < 2 or y.ndim != 1 or len(x) != len(y) or not len(y):
        wanted = "X must be (N, ...) and y (N,), with N of at least 1"
        raise InputError(f"{origin}: X has shape {x.shape} and y {y.shape}; {wanted}")
    if x.dtype.kind not in "fiub":
        raise InputError(f"{origin}: X is of {x.dtype}; it must be real numbers")
    x = np.ascontiguousarray(x, np.float32)
    if not np.isfinite(x).all():
        row = int(np.argwhere(~np.isfinite(x))[0][0])
        raise InputError(f"{origin}: X is not finite in row {row}; every input must be a number")
    return Labelled(x, *_checked_classes(y, origin, num_classes))


def _checked_classes(y: np.ndarray, origin: str, num_classes: int | None) -> tuple[np.ndarray, int]:
    whole = y.dtype.kind in "iub" or (y.dtype.kind == "f" and np.isfinite(y).all() and (y == np.round(y)).all())
    if not whole:
        raise InputError(f"{origin}: y is of {y.dtype}; classes must be integers from 0: use numpy.unique's inverse")
    y = y.astype(np.int64)
    least, largest = int(y.min()), int(y.max())
    if least != 0:
        raise InputError(f"{origin}: y begins at class {least}; classes must be counted from 0: subtract {least}")
    num = largest + 1 if num_classes is None else num_classes
    if largest >= num:
        raise InputError(
            f"{origin}: y has class {largest}, and num_classes is {num}; it must be at least {largest + 1}"
        )
    if num < 2:
        raise InputError(f"{origin}: y has one class alone; there is nothing to tell apart")
    return y, num


def read_npz(path: str, num_classes: int | None = None) -> Labelled:
    """The arrays X and y of a .npz file.

    Raises:
        InputError: there is no such file, it is none, or it has no X or no y; or as `labelled`.
    """
    try:
        with Path(path).open("rb") as file:
            arrays = np.load(file, allow_pickle=False)
            if not isinstance(arrays, np.lib.npyio.NpzFile):
                raise InputError(f"{path} is a single array; it must be a .npz file with the arrays X and y")
            names = list(arrays.files)
            missing = [name for name in ("X", "y") if name not in names]
            if missing:
                raise InputError(
                    f"{path} has no array {missing[0]!r}, but {', '.join(names) or 'none'}; name them X, y"
                )
            return labelled(arrays["X"], arrays["y"], path, num_classes)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except InputError:
        raise
    except (OSError, ValueError, EOFError, KeyError, BadZipFile) as error:
        raise InputError(f"{Path(path)} cannot be read as .npz: {error}") from None


def digits() -> Labelled:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels, as (1, 8, 8) images of 0 to 1.

    Raises:
        ArgumentError: about "source": scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ArgumentError("source", "is digits, which needs scikit-learn: pip install 'distsam[digits]'") from None
    found = load_digits()
    return labelled(found.images[:, None] / 16.0, found.target, "digits")


def split_examples(examples: Labelled, heldout: float, validation: float, seed: int) -> np.ndarray:
    """(N,) TRAIN, VALIDATION or HELDOUT for every example, the same shares of every class.

    Args:
        examples: N of them.
        heldout: share that only judges, from 0 to below 1.
        validation: share of the rest that chooses weights, from 0 to below 1.
        seed: of the division; another `validation` leaves the held-out examples the same.

    Raises:
        ArgumentError: a share out of range, or one that leaves nothing to train on.
    """
    for name, share in (("heldout", heldout), ("validation", validation)):
        if not 0 <= share < 1:
            raise ArgumentError(name, f"is {share}; it must be at least 0 and below 1")
    part = np.full(len(examples), TRAIN, dtype=np.int8)
    draw = np.random.default_rng(seed)
    # One order of all, then shares along each class of it: rounding of many small classes must not add up.
    order = draw.permutation(len(examples))
    by_class = order[np.argsort(examples.classes[order], kind="stable")]
    part[by_class[_spread(len(by_class), heldout)]] = HELDOUT
    rest = by_class[part[by_class] == TRAIN]
    part[rest[_spread(len(rest), validation)]] = VALIDATION
    if not (part == TRAIN).any():
        raise ArgumentError("heldout", f"is {heldout}, and validation {validation}: nothing is left to train on")
    return part


def _spread(num: int, share: float) -> np.ndarray:
    """round(share * num) places, evenly spread over 0 to num - 1."""
    count = round(share * num)
    return np.arange(count) * num // count if count else np.empty(0, np.int64)


def noisy_classes(classes: np.ndarray, num_classes: int, share: float, seed: int) -> np.ndarray:
    """Symmetric label noise: exactly round(share * N) of the labels, drawn by `seed`, become one of the other classes,
    each as likely.

    Args:
        classes: (N,) from 0 to num_classes - 1.
        num_classes: C.
        share: from 0 to 1.
        seed: of the draw.
    """
    draw = np.random.default_rng([seed, 1])
    wrong = draw.permutation(len(classes))[: round(share * len(classes))]
    noisy = classes.copy()
    noisy[wrong] = (classes[wrong] + draw.integers(1, num_classes, len(wrong))) % num_classes
    return noisy
