"""Numbers by their place. The bounds are six standard deviations of what truly random numbers would give."""

from math import sqrt
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

from distsam.tensornet import normals
from distsam.tensornet.normals import bits_at, blocks, normals_at, places_of, seed_of

NUM = 2**18
SIGMAS = 6


def numbers_of(key: int, first: int = 0, num: int = NUM) -> np.ndarray:
    return normals_at(seed_of(key), np.arange(first, first + num, dtype=np.uint64)).numpy()


def assert_uncorrelated(a: np.ndarray, b: np.ndarray) -> None:
    """Neither the numbers nor their squares, which have variance 2, know of each other."""
    assert abs(np.mean(a * b)) < SIGMAS / sqrt(len(a))
    assert abs(np.mean((a**2 - 1) * (b**2 - 1))) < SIGMAS * 2 / sqrt(len(a))


def test_the_bits_are_those_of_splitmix64():
    """The first five outputs of the reference code (splitmix64.c by Vigna) for the seed 1234567."""
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert bits_at(1234567, np.arange(5, dtype=np.uint64)).tolist() == published


def test_the_state_wraps_round_without_a_warning():
    """Place 2^64 - 1 has state seed + 2^64 gamma, which is the seed: what place 0 has for the seed less gamma."""
    gamma = 0x9E3779B97F4A7C15
    last = bits_at(5, np.array([2**64 - 1], dtype=np.uint64))
    assert last.tolist() == bits_at((5 - gamma) % 2**64, np.zeros(1, dtype=np.uint64)).tolist()


@pytest.mark.parametrize("key", [0, 1, 2**62 + 12345, 2**63 - 1])
def test_the_numbers_are_standard_normal(key: int):
    x = numbers_of(key)
    assert abs(x.mean()) < SIGMAS / sqrt(NUM)
    assert abs((x**2).mean() - 1) < SIGMAS * sqrt(2 / NUM)
    assert abs((x**3).mean()) < SIGMAS * sqrt(15 / NUM)
    assert abs((x**4).mean() - 3) < SIGMAS * sqrt(96 / NUM)
    # Of truly normal numbers one set in ten million has a smaller p.
    assert kstest(x, "norm").pvalue > 1e-7


@pytest.mark.parametrize("distance", [1, 2, 3, 64, 1000, 2**15])
def test_numbers_at_neighbouring_places_are_independent(distance: int):
    x = numbers_of(7, num=NUM + distance)
    assert_uncorrelated(x[:-distance], x[distance:])


@pytest.mark.parametrize(("key", "other"), [(0, 1), (1, 2), (5, 2**62 + 5), (0x9E3779B97F4A7C15 >> 1, 0)])
def test_numbers_of_two_keys_are_independent(key: int, other: int):
    a, b = numbers_of(key), numbers_of(other)
    assert_uncorrelated(a, b)
    # Nor is one sequence the other, shifted: no number stands in both.
    assert not np.intersect1d(a, b).size


def test_the_largest_and_the_smallest_bits_give_finite_numbers():
    extremes = np.array([0, 2**64 - 1], dtype=np.uint64)
    with mock.patch.object(normals, "bits_at", return_value=extremes):
        low, high = normals_at(0, np.zeros(2, dtype=np.uint64)).tolist()
    assert low == -high
    assert 8.2 < high < 8.3


@given(shape=st.lists(st.integers(0, 5), min_size=1, max_size=4), chunk=st.integers(1, 40))
def test_blocks_cover_every_element_once_and_are_small(shape: list[int], chunk: int):
    counts = torch.zeros(shape)
    with mock.patch.object(normals, "CHUNK", chunk):
        for block in blocks(shape):
            assert 0 < counts[block].numel() <= chunk
            counts[block] += 1
    assert (counts == 1).all()


def test_places_are_those_of_the_flat_tensor():
    places = np.arange(3 * 4 * 5).reshape(3, 4, 5) + 1000
    block = (slice(1, 3), slice(0, 4), slice(2, 5))
    assert (places_of(block, (20, 5, 1), 1000) == places[block]).all()
