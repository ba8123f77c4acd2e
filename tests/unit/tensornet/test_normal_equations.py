"""The least-squares problem of one core, against the dense design matrix of numpy."""

import numpy as np
import pytest
import torch
from einsum_reference import RELATIVE, SPECS, reference

from distsam.tensornet import normal_equations
from distsam.tensornet.environments import Environments, row_form
from distsam.tensornet.normal_equations import CountedEntries, sort_into_blocks
from distsam.tensornet.spec import NetworkSpec


def problem(spec: NetworkSpec, count: int, seed: int = 0) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    cores = [rng.normal(size=shape) for shape in spec.core_shapes]
    indices = np.stack([rng.integers(size, size=count) for size in spec.shape], 1)
    return cores, indices, rng.normal(size=count)


def design(spec: NetworkSpec, cores: list[np.ndarray], k: int, indices: np.ndarray) -> np.ndarray:
    """(B, R, P): the derivative of each entry by each element of core k."""
    form = row_form(spec, k)
    rows = []
    for index in indices:
        upstream = np.zeros(spec.shape)
        upstream[tuple(index)] = 1.0
        gradient = np.asarray(reference(spec, cores, upstream, k))
        rows.append(gradient.transpose(form.dims).reshape(form.num_rows, form.num_unknowns))
    return np.stack(rows) if rows else np.zeros((0, form.num_rows, form.num_unknowns))


def summed(spec: NetworkSpec, cores: list[np.ndarray], k: int, indices: np.ndarray, values: np.ndarray) -> np.ndarray:
    columns = torch.from_numpy(np.ascontiguousarray(indices.T))
    environments = Environments(spec, k, [torch.from_numpy(core) for core in cores], columns)
    form, found = row_form(spec, k), []
    for block in sort_into_blocks(spec, k, columns.numpy(), values, torch.device("cpu")):
        shape = (block.last - block.first, form.num_unknowns, form.num_unknowns + 1)
        sums = torch.zeros(shape, dtype=torch.float64)
        block.known.add_to(sums, environments)
        found.append(sums)
    return torch.cat(found).numpy()


@pytest.mark.parametrize("count", [0, 1, 7, 300])  # few: joined entry by entry; many: looked up in a table
@pytest.mark.parametrize("name", SPECS)
def test_the_sums_of_every_core_are_those_of_the_dense_design(name: str, count: int) -> None:
    spec = SPECS[name]
    cores, indices, values = problem(spec, count)
    for k in range(spec.num_cores):
        found, design_BRP = summed(spec, cores, k, indices, values), design(spec, cores, k, indices)
        # An entry touches one row, so that of the whole matrix these are the blocks on the diagonal, and all of it.
        squares = np.einsum("brp,brq->rpq", design_BRP, design_BRP)
        right = np.einsum("brp,b->rp", design_BRP, values)
        scale = max(1.0, float(np.abs(squares).max()))
        np.testing.assert_allclose(found[:, :, :-1], squares, rtol=0, atol=RELATIVE * scale)
        np.testing.assert_allclose(found[:, :, -1], right, rtol=0, atol=RELATIVE * scale)


@pytest.mark.parametrize("name", ["cp", "tucker", "tt"])
def test_blocks_and_pieces_of_any_size_give_the_same_sums(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = SPECS[name]
    cores, indices, values = problem(spec, 200)
    monkeypatch.setattr(normal_equations, "_MOST_SQUARES", 0)  # no table of all cells
    whole = [summed(spec, cores, k, indices, values) for k in range(spec.num_cores)]
    monkeypatch.setattr(normal_equations, "SUMS_BYTES", 1000)
    monkeypatch.setattr(normal_equations, "PIECE_ELEMENTS", 40)
    for k, expected in enumerate(whole):
        blocks = sort_into_blocks(spec, k, indices.T, values, torch.device("cpu"))
        assert blocks[-1].last == row_form(spec, k).num_rows
        assert sum(len(block.known.pieces) for block in blocks) > 1  # type: ignore[attr-defined]
        np.testing.assert_allclose(summed(spec, cores, k, indices, values), expected, rtol=1e-12, atol=1e-12)


def test_entries_that_fill_a_table_are_counted_in_it() -> None:
    for count, is_counted in ((50, True), (10, False)):  # of 60 cells; 15 are needed
        _, indices, values = problem(SPECS["cp"], count)
        kinds = [sort_into_blocks(SPECS["cp"], k, indices.T, values, torch.device("cpu")) for k in range(3)]
        assert [isinstance(block.known, CountedEntries) for blocks in kinds for block in blocks] == [is_counted] * 3


@pytest.mark.parametrize("name", SPECS)
def test_a_core_is_made_of_its_rows(name: str) -> None:
    spec = SPECS[name]
    for k, shape in enumerate(spec.core_shapes):
        core = torch.randn(shape)
        assert torch.equal(row_form(spec, k).core_of(row_form(spec, k).rows_of(core)), core)


def test_chunks_are_as_long_as_wastes_least() -> None:
    length = normal_equations._chunk_length
    assert length(np.array([4] * 1000), 2**17) == 4
    assert length(np.array([1000] * 10), 2**17) == 1024
    assert length(np.array([10**6]), 64) == 64
    assert length(np.array([0, 0]), 1) == 1
