import numpy as np
import pytest

from distsam.errors import ArgumentError
from distsam.tasks.sources import load_bundled, lowrank

SIZES = {"i": 20, "a": 3, "b": 2, "j": 30}
TUCKER2 = "ia,ab,bj->ij"


def refused(load, *parts, **arguments):
    with pytest.raises(ArgumentError) as caught:
        load(**arguments)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("source", "shape", "num_missing"),
    [
        ("covid19_serology", (438, 6, 11), 0),
        ("il2", (13, 4, 12, 8), 192),
        ("kinetic", (64, 12, 10, 60), 1754),
        ("indian_pines", (145, 145, 200), 0),
    ],
)
def test_tensorly_sources_have_their_published_shape_and_missing_entries(source, shape, num_missing):
    entries = load_bundled(source)
    assert (entries.shape, entries.name) == (shape, source)
    assert len(entries) == np.prod(shape) - num_missing


def test_kinetic_leaves_out_the_zeros_that_stand_for_missing_values():
    from tensorly.datasets import load_kinetic

    marked = np.asarray(load_kinetic().missing_values_position)
    assert marked.sum() == 1754
    assert not marked[tuple(load_bundled("kinetic").indices.T)].any()


def test_the_users_tensorly_backend_stays_set_and_does_not_matter():
    import tensorly

    expected = load_bundled("il2")
    tensorly.set_backend("pytorch")
    try:
        got = load_bundled("il2")
        assert tensorly.get_backend() == "pytorch"
    finally:
        tensorly.set_backend("numpy")
    assert np.array_equal(got.indices, expected.indices)
    assert np.array_equal(got.values, expected.values)


def test_lowrank_has_the_rank_of_its_bonds_and_standard_deviation_one():
    matrix = lowrank(TUCKER2, SIZES).values.reshape(20, 30)
    assert np.linalg.matrix_rank(matrix) == 2
    assert matrix.std() == pytest.approx(1.0, abs=1e-12)


def test_lowrank_is_a_function_of_its_seed():
    one, same, other = (lowrank(TUCKER2, SIZES, noise=0.5, seed=seed).values for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_lowrank_noise_is_added_to_the_same_truth():
    truth, noisy = (lowrank(TUCKER2, SIZES, noise=noise, seed=3).values for noise in (0.0, 0.5))
    assert (noisy - truth).std() == pytest.approx(0.5, rel=0.1)


def test_unknown_source_suggests_the_nearest():
    refused(load_bundled, "source: 'covid19_serolgy'", "did you mean 'covid19_serology'", source="covid19_serolgy")
    refused(load_bundled, "source: 'qqq'", "known: ", source="qqq")


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"equation": "ia,ab,bj"}, ["equation: 'ia,ab,bj' cannot be read", "'ir,jr,kr->ijk'"]),
        ({"equation": "ia,,bj->ij"}, ["cannot be read"]),
        ({"equation": "i1,1j->ij"}, ["cannot be read"]),
        ({"equation": "iaa,bj->ij"}, ["repeats 'a' in a core, 'iaa'"]),
        ({"equation": "ia,ab,bj->ijk"}, ["mode 'k' is in no core"]),
        ({"equation": "ia,ab,bj->i"}, ["has 1 modes", "at least 2"]),
        ({"sizes": {"i": 2, "a": 2, "b": 2}}, ["sizes: has no size for 'j'"]),
        ({"sizes": {**SIZES, "z": 2}}, ["sizes: has 'z'"]),
        ({"sizes": {**SIZES, "a": 0}}, ["sizes[a]: is 0", "at least 1"]),
        ({"sizes": {**SIZES, "a": 2.5}}, ["sizes[a]: is 2.5"]),
        ({"sizes": {**SIZES, "i": 1, "j": 1}}, ["one entry"]),
        ({"noise": -0.5}, ["noise: is -0.5"]),
        ({"noise": float("nan")}, ["noise: is nan"]),
    ],
)
def test_lowrank_refuses_what_is_no_network(change, parts):
    refused(lowrank, *parts, **{"equation": TUCKER2, "sizes": SIZES, **change})
