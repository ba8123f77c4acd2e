import tracemalloc
from collections.abc import Iterator
from itertools import pairwise, product
from math import exp, log, prod, sqrt
from typing import Any
from unittest import mock

import pytest
import torch
from einsum_reference import SPECS
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import distsam
from distsam.errors import ArgumentError
from distsam.tensornet import NetworkSpec, initial, normals
from distsam.tensornet.initial import NetworkStart, log_tensor_norm

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def one_core(shape: tuple[int, ...]) -> NetworkSpec:
    """A network of a tiny core, so that the other does not begin at place 0, and one of this shape."""
    modes = tuple(f"m{n}" for n in range(len(shape)))
    sizes = (("a", 3), *zip(modes, shape, strict=True))
    return NetworkSpec("einsum", (("a",), modes), ("a", *modes), sizes, ("small", "large"))


def whole(start: NetworkStart, k: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    core = torch.empty(start.spec.core_shapes[k], dtype=dtype)
    return core, start.fill_(k, core, [0] * core.dim())


def raw_cores(start: NetworkStart) -> tuple[list[Tensor], list[float]]:
    cores, norms_sq = zip(*(whole(start, k) for k in range(start.spec.num_cores)), strict=True)
    return list(cores), [float(norm_sq) for norm_sq in norms_sq]


@st.composite
def cuts(draw: st.DrawFn) -> tuple[tuple[int, ...], list[list[int]]]:
    """A shape, and per dim where it is cut."""
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    return shape, [sorted(draw(st.sets(st.integers(0, size), max_size=2)) | {0, size}) for size in shape]


def blocks_of(bounds: list[list[int]]) -> Iterator[tuple[slice, ...]]:
    yield from product(*([slice(first, end) for first, end in pairwise(cut)] for cut in bounds))


@given(cut=cuts(), key=st.integers(0, 2**63 - 1), dtype=st.sampled_from(DTYPES), chunk=st.integers(1, 50))
def test_pieces_are_the_whole_bit_for_bit_and_so_are_their_sums_of_squares(
    cut: Any, key: int, dtype: torch.dtype, chunk: int
) -> None:
    shape, bounds = cut
    start = NetworkStart(one_core(shape), key)
    core, norm_sq = whole(start, 1, dtype)
    total = torch.zeros((), dtype=torch.float64)
    for block in blocks_of(bounds):
        piece = torch.full_like(core[block], torch.nan)
        with mock.patch.object(normals, "CHUNK", chunk):
            total += start.fill_(1, piece, [part.start for part in block])
        assert torch.equal(piece, core[block])
    assert torch.equal(total, norm_sq)


def test_sums_of_squares_of_large_pieces_add_up_to_the_same_bits_in_every_order():
    start = NetworkStart(one_core((70_000, 7)), 3)
    _, norm_sq = whole(start, 1)
    bounds = [0, 1, 20_011, 50_000, 50_001, 69_000, 70_000]
    ranges = list(pairwise(bounds))
    sums = [start.fill_(1, torch.empty(b - a, 7), (a, 0)) for a, b in ranges]
    assert torch.equal(sum(sums[::-1], torch.zeros((), dtype=torch.float64)), norm_sq)
    by_columns = [start.fill_(1, torch.empty(70_000, 1), (0, column)) for column in range(7)]
    assert torch.equal(sum(by_columns, torch.zeros((), dtype=torch.float64)), norm_sq)


@pytest.mark.parametrize("num", [1, 24, 100_000])
def test_the_sum_of_squares_is_that_of_the_numbers(num: int):
    """The squares are rounded to a 2^-45 (up to 32 numbers) or 2^-50 N, as independent as the numbers are."""
    core, norm_sq = whole(NetworkStart(one_core((num,)), 1), 1)
    quantum = max(2.0**-45, 2.0**-50 * num)
    assert abs(float(norm_sq) - float(core.square().sum())) <= 6 * quantum * sqrt(num / 12) + 2.0**-52 * num


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_piece_holds_the_float64_numbers_rounded_whatever_its_memory_order(dtype: torch.dtype):
    start = NetworkStart(one_core((5, 6)), 1)
    exact, _ = whole(start, 1)
    piece = torch.nn.Parameter(torch.empty(6, 5, dtype=dtype).T)
    start.fill_(1, piece, (0, 0))
    assert torch.equal(piece, exact.to(dtype))


def test_an_empty_piece_adds_nothing():
    start = NetworkStart(one_core((5, 6)), 1)
    assert float(start.fill_(1, torch.empty(0, 6), (5, 0))) == 0


@pytest.mark.parametrize(("shape", "offsets"), [((5, 6), (1, 0)), ((2, 2), (0, -1)), ((5,), (0,)), ((5, 6), (0,))])
def test_a_piece_beyond_the_core_is_refused(shape: tuple[int, ...], offsets: tuple[int, ...]):
    with pytest.raises(ArgumentError, match=r"^piece: .* within the core of shape \(5, 6\)"):
        NetworkStart(one_core((5, 6)), 1).fill_(1, torch.empty(shape), offsets)


@pytest.mark.parametrize("key", [-1, 2**63, 0.5, None])
def test_a_key_of_more_than_63_bits_is_refused(key: Any):
    with pytest.raises(ArgumentError, match=r"^key: "):
        NetworkStart(distsam.cp((3, 4), 2), key)


def test_other_cores_and_other_keys_have_other_numbers():
    spec = distsam.tr((30, 30, 30), 30)
    flat = [core.flatten() for key in (1, 2) for core in raw_cores(NetworkStart(spec, key))[0]]
    assert len(torch.cat(flat).unique()) == 6 * 30**3
    for a in range(6):
        for b in range(a):
            assert abs(float((flat[a] * flat[b]).mean())) < 6 / sqrt(30**3)


class LargestMade(TorchDispatchMode):
    """The size of the largest tensor that an operation makes beside views and changes of what there was."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and not any(
            isinstance(a, Tensor) and a.untyped_storage().data_ptr() == result.untyped_storage().data_ptr()
            for a in args
        ):
            self.elements = max(self.elements, result.numel())
        return result


@pytest.mark.parametrize("shape", [(2**21,), (2**20, 2), (2, 2**20), (2**7, 2**7, 2**7)])
def test_a_fill_takes_no_memory_that_grows_with_the_piece(shape: tuple[int, ...]):
    start, piece = NetworkStart(one_core(shape), 1), torch.empty(shape)
    with LargestMade():
        # What is imported at first use does not count.
        start.fill_(1, piece[:1], [0] * piece.dim())
    tracemalloc.start()
    try:
        with LargestMade() as largest:
            start.fill_(1, piece, [0] * piece.dim())
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # numpy's: places, bits, shifted bits and numbers at a time, 8 bytes each; a whole one would take 16 MiB.
    assert peak_bytes < 8 * 8 * normals.CHUNK
    assert 0 < largest.elements <= normals.CHUNK


@pytest.mark.parametrize("name", SPECS)
def test_the_factors_of_a_small_network_need_no_sums_of_squares(name: str):
    start = NetworkStart(SPECS[name], 9, std=0.3)
    cores, norms_sq = raw_cores(start)
    factors = start.factors(norms_sq)
    assert start.is_exact
    assert factors == start.factors([1.0] * len(cores)) == start.factors(torch.ones(len(cores)))
    drawn = [core * factor for core, factor in zip(cores, factors, strict=True)]
    assert log_tensor_norm(start.spec, drawn) == pytest.approx(
        log(0.3) + 0.5 * log(prod(start.spec.shape)), abs=1e-13 * max(1, start.spec.num_cores)
    )


@pytest.mark.parametrize("name", SPECS)
def test_norms_of_averaged_cores_give_the_mean_over_them(name: str):
    """T is linear in a core: so the mean over a Gaussian core is the sum over a basis, times its variance."""
    spec = SPECS[name]
    cores, _ = raw_cores(NetworkStart(spec, 4))
    for averaged in range(spec.num_cores):
        known: list[Tensor | float] = [*cores]
        known[averaged] = norm = 2.5
        total, (*others,) = 0.0, cores
        for place in range(cores[averaged].numel()):
            others[averaged] = torch.zeros_like(cores[averaged])
            others[averaged].view(-1)[place] = 1.0
            total += exp(2 * log_tensor_norm(spec, others))
        assert log_tensor_norm(spec, known) == pytest.approx(0.5 * log(norm**2 / (place + 1) * total), abs=1e-12)


@pytest.mark.parametrize("norms", [None, [1.0, 3.0]])
def test_means_over_large_cores_come_near_the_wanted_root_mean_square(monkeypatch: Any, norms: Any):
    """Two cores of m x r and r x n: ||T||^2 is off by a relative sqrt(2 / (m n)) or so, the norms not at all."""
    m, n, std = 300, 200, 0.07
    start = NetworkStart(distsam.tt((m, n), 20), 5, std=std, norms=norms)
    monkeypatch.setattr(initial, "EXACT_ELEMENTS", 0)
    cores, norms_sq = raw_cores(start)
    drawn = [core * factor for core, factor in zip(cores, start.factors(norms_sq), strict=True)]
    assert not start.is_exact
    got = [float(torch.linalg.vector_norm(core)) for core in drawn]
    ratios = norms or [1.0, 1.0]
    assert got[0] / got[1] == pytest.approx(ratios[0] / ratios[1], rel=1e-13)
    miss = log_tensor_norm(start.spec, drawn) - log(std) - 0.5 * log(m * n)
    assert 0 < abs(miss) < 6 * 0.5 * sqrt(2 / (m * n))
    # The mean alone needs nothing drawn: this is theory in closed form.
    wanted = (std * sqrt(m * n) * sqrt(20) / (ratios[0] * ratios[1])) ** 0.5
    assert got[0] == pytest.approx(ratios[0] * wanted, rel=1e-13)


def test_small_cores_are_contracted_where_the_largest_is_averaged(monkeypatch: Any):
    """One core of n slices 2 x 2 between small ones: a quadratic form of n x 4 numbers, relative variance below 2/n.

    With the mean over the small ones too, starts differ by tens of per cent.
    """
    n, keys = 20_000, range(8)
    spec = distsam.tt((2, 2, n, 2, 2), 2)

    def misses() -> list[float]:
        found = []
        for key in keys:
            start = NetworkStart(spec, key)
            cores, norms_sq = raw_cores(start)
            factors = start.factors(norms_sq)
            found.append(log_tensor_norm(spec, cores) + sum(map(log, factors)) - 0.5 * log(16 * n))
        return [abs(miss) for miss in found]

    bound = 6 * 0.5 * sqrt(2 / n)
    monkeypatch.setattr(initial, "EXACT_ELEMENTS", 1000)
    assert max(misses()) < bound
    monkeypatch.setattr(initial, "EXACT_ELEMENTS", 0)
    assert max(misses()) > 5 * bound


def test_a_contraction_that_would_take_long_is_left_to_the_mean():
    """A ring of bond 100 has 10^8 numbers between two cores and their copies."""
    ring = NetworkStart(distsam.tr((100,) * 4, 100), 1)
    assert sum(map(prod, ring.spec.core_shapes)) <= initial.EXACT_ELEMENTS
    assert not ring.is_exact
    assert NetworkStart(distsam.tt((100,) * 4, 100), 1).is_exact


@pytest.mark.parametrize("elements", [0, 2**22])
def test_what_float64_cannot_hold_is_refused(monkeypatch: Any, elements: int):
    monkeypatch.setattr(initial, "EXACT_ELEMENTS", elements)
    start = NetworkStart(NetworkSpec("einsum", (("a",),), ("a",), (("a", 1000),), ("x",)), 1, std=1e307)
    with pytest.raises(ArgumentError, match=r"^std: 1e\+307 cannot be met"):
        start.factors([1000.0])


def test_extreme_ratios_of_norms_leave_the_root_mean_square_exact():
    spec = distsam.tt((6, 5, 4), 3)
    start = NetworkStart(spec, 1, norms=[1e100, 1e-100, 1e100])
    cores, norms_sq = raw_cores(start)
    drawn = [core * factor for core, factor in zip(cores, start.factors(norms_sq), strict=True)]
    # The logarithms are of the size of 300, so that each is rounded by up to 2^-45.
    assert log_tensor_norm(spec, drawn) == pytest.approx(0.5 * log(120), abs=6 * 2.0**-44)
