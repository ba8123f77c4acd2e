import numpy as np
import pytest

from distsam.errors import ArgumentError
from distsam.tasks.entries import entries_from_dense
from distsam.tasks.split import split_entries

RNG = np.random.default_rng(0)
ENTRIES = entries_from_dense(RNG.standard_normal((10, 12, 5)))


def with_holes():
    tensor = RNG.standard_normal((10, 12, 5))
    tensor[RNG.random(tensor.shape) < 0.4] = np.nan
    return entries_from_dense(tensor)


@pytest.mark.parametrize("how", [{}, {"fibre_mode": 1}])
def test_the_three_parts_are_all_entries_once_and_ascending(how):
    entries = with_holes()
    parts = [*vars(split_entries(entries, 0.5, 0.2, **how)).values()]
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(entries)))
    for part in parts:
        assert part.dtype == np.int64
        assert (np.diff(part) > 0).all()


def test_random_shares_are_exact():
    split = split_entries(ENTRIES, observed=0.3, validation=0.1)
    assert (len(split.train), len(split.validation), len(split.heldout)) == (162, 18, 420)


def test_a_split_is_a_function_of_its_seed():
    one, same, other = (split_entries(ENTRIES, seed=seed).train for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_another_validation_share_leaves_the_heldout_entries_the_same():
    few, many = (split_entries(ENTRIES, 0.5, share, seed=4).heldout for share in (0.0, 0.5))
    assert np.array_equal(few, many)


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_fibres_are_never_divided(mode):
    entries = with_holes()
    split = split_entries(entries, 0.5, 0.2, fibre_mode=mode)
    seen = []
    for part in (split.train, split.validation, split.heldout):
        others = np.delete(entries.indices[part], mode, axis=1)
        seen.append({tuple(row) for row in others.tolist()})
        assert seen[-1]
    assert len(set.union(*seen)) == sum(map(len, seen))


def test_fibre_shares_count_fibres():
    split = split_entries(ENTRIES, observed=0.5, validation=0.2, fibre_mode=2)
    assert (len(split.train), len(split.validation), len(split.heldout)) == (48 * 5, 12 * 5, 60 * 5)


def test_everything_observed_leaves_no_heldout_entry():
    split = split_entries(ENTRIES, observed=1, validation=0)
    assert (len(split.train), len(split.validation), len(split.heldout)) == (600, 0, 0)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ({"observed": 0}, ["observed: is 0;", "above 0 and at most 1"]),
        ({"observed": 1.5}, ["observed: is 1.5"]),
        ({"observed": float("nan")}, ["observed: is nan"]),
        ({"validation": 1.0}, ["validation: is 1.0", "below 1"]),
        ({"validation": -0.1}, ["validation: is -0.1"]),
        ({"observed": 1e-6}, ["observed: 1e-06", "600 entries", "train on"]),
        ({"observed": 0.01, "validation": 0.99}, ["validation=0.99", "train on"]),
        (
            {"observed": 0.01, "validation": 0.01},
            ["validation: 0.01 of", "6 observed entries", "validate on"],
        ),
        ({"fibre_mode": 3}, ["fibre_mode: is 3", "0 to 2"]),
        ({"fibre_mode": -1}, ["fibre_mode: is -1", "0 to 2"]),
    ],
)
def test_splits_that_cannot_be_are_refused_by_their_name(arguments, parts):
    with pytest.raises(ArgumentError) as caught:
        split_entries(ENTRIES, **arguments)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)
