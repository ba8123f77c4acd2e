"""Labelled examples: what is taken, what is refused, how they are divided and made noisy."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distsam.errors import InputError
from distsam.tasks.labelled import (
    HELDOUT,
    TRAIN,
    VALIDATION,
    digits,
    labelled,
    noisy_classes,
    read_npz,
    split_examples,
)
from distsam.tasks.sources import indian_pines_pixels

X = np.zeros((6, 2))


@pytest.mark.parametrize(
    ("x", "y", "num_classes", "message"),
    [
        (X, [1, 2, 1, 2, 1, 2], None, "file: y begins at class 1; classes must be counted from 0: subtract 1"),
        (X, [-1, 2, 1, 2, 1, 2], None, "file: y begins at class -1"),
        (X, [0, 1, 5, 0, 1, 2], 4, "file: y has class 5, and num_classes is 4; it must be at least 6"),
        (X, [0.5, 1, 1, 0, 1, 2], None, "file: y is of float64; classes must be integers from 0"),
        (X, ["a", "b", "a", "b", "a", "b"], None, "file: y is of <U1; classes must be integers from 0"),
        (X, [0, 1, 0], None, r"file: X has shape \(6, 2\) and y \(3,\)"),
        (X[:0], [], None, r"file: X has shape \(0, 2\) and y \(0,\)"),
        (X, [0] * 6, None, "file: y has one class alone"),
        (np.full((6, 2), np.nan), [0, 1, 0, 1, 0, 1], None, "file: X is not finite in row 0"),
        (X.astype(str), [0, 1, 0, 1, 0, 1], None, "file: X is of <U32; it must be real numbers"),
    ],
)
def test_what_are_no_examples_is_said_in_one_line(x: Any, y: Any, num_classes: int | None, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        labelled(x, y, "file", num_classes)
    assert "\n" not in str(caught.value)


def test_whole_numbers_of_any_type_are_classes() -> None:
    for y in (np.array([0, 1, 2, 0, 1, 2], np.uint8), np.array([[0.0], [1], [2], [0], [1], [2]])):
        found = labelled(X, y, "file")
        assert (found.classes.tolist(), found.num_classes) == ([0, 1, 2, 0, 1, 2], 3)
    assert labelled(X, [0, 1, 0, 1, 0, 1], "file", 7).num_classes == 7


def test_a_file_is_read_or_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    with pytest.raises(InputError, match=r"data.npz: no such file"):
        read_npz(str(path))
    np.savez(path, X=X, z=[1])
    with pytest.raises(InputError, match="has no array 'y', but X, z; name them X, y"):
        read_npz(str(path))
    np.savez(path, X=X, y=[0, 1, 0, 1, 0, 1])
    assert len(read_npz(str(path))) == 6
    np.save(path.with_suffix(".npy"), X)
    with pytest.raises(InputError, match="is a single array; it must be"):
        read_npz(str(path.with_suffix(".npy")))
    path.write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(InputError, match="cannot be read as"):
        read_npz(str(path))


def test_shares_are_those_of_every_class_and_heldout_ones_do_not_depend_on_validation() -> None:
    examples = labelled(np.zeros((1000, 1)), np.repeat(np.arange(4), [600, 200, 150, 50]), "file")
    part = split_examples(examples, 0.2, 0.1, seed=3)
    for number in range(4):
        own = part[examples.classes == number]
        assert abs(float(np.mean(own == HELDOUT)) - 0.2) < 0.02
    assert [int((part == p).sum()) for p in (TRAIN, VALIDATION, HELDOUT)] == [720, 80, 200]
    other = split_examples(examples, 0.2, 0.5, seed=3)
    assert np.array_equal(part == HELDOUT, other == HELDOUT)
    assert not np.array_equal(part, split_examples(examples, 0.2, 0.1, seed=4))


def test_noise_makes_exactly_its_share_of_labels_wrong_and_each_wrong_class_equally_likely() -> None:
    classes = np.repeat(np.arange(5), 4000)
    noisy = noisy_classes(classes, 5, 0.4, seed=1)
    assert (noisy != classes).sum() == 8000
    assert np.array_equal(noisy, noisy_classes(classes, 5, 0.4, seed=1))
    wrong = (noisy - classes)[noisy != classes] % 5
    # Each of the four others 2000 times, with standard deviation sqrt(8000 * 1/4 * 3/4) = 39.
    assert all(abs(int((wrong == k).sum()) - 2000) < 5 * 39 for k in (1, 2, 3, 4))
    assert np.array_equal(noisy_classes(classes, 5, 0.0, seed=1), classes)


def test_the_installed_data_sets_are_what_they_are_known_for() -> None:
    pines = indian_pines_pixels()
    assert (pines.inputs.shape, pines.num_classes) == ((10249, 200), 16)
    assert np.bincount(pines.classes).min() == 20  # oats, the smallest class
    pytest.importorskip("sklearn")
    found = digits()
    assert (found.inputs.shape, found.num_classes, found.inputs.max()) == ((1797, 1, 8, 8), 10, 1.0)
