"""Rows joined by compiled loops: the same entries and gradients, and only where they are asked for."""

import sys

import numpy as np
import pytest
import torch
from einsum_reference import SPECS, arrays, assert_gradients_match, assert_matches, draw, draw_indices, reference

import distsam
from distsam.tensornet import kernels
from distsam.tensornet.cuts import connected_cuts
from distsam.tensornet.entries import entries_of
from distsam.tensornet.kernels import KERNELS, asked_for, product_sum
from distsam.tensornet.planner import plan_cut, plan_entries

CPU = torch.device("cpu")


def tables_and_rows(num, count=50, width=5, dtype=torch.float64):
    seeded = torch.Generator().manual_seed(0)
    tables = [torch.randn(3 + k, width, dtype=dtype, generator=seeded).requires_grad_() for k in range(num)]
    return tables, [torch.randint(3 + k, (count,), generator=seeded) for k in range(num)]


@pytest.mark.parametrize("name", [name for name in SPECS if name != "tr order 6"])
def test_every_cut_that_can_be_joined_in_one_pass_gives_the_explicit_einsum(name):
    network, joined = draw(SPECS[name]), 0
    spec, cores = network.spec, list(network.cores)
    scale = reference(spec, [np.abs(core) for core in arrays(network)])
    for batch_size in (0, 1, 11):
        indices = draw_indices(spec, batch_size)
        where = tuple(indices.numpy().T)
        for cut in connected_cuts(spec):
            plan = plan_cut(spec, cut, batch_size, fused=True)
            joined += plan.fused
            assert plan.fused or len(cut) in (1, 5) or not plan.batch_last
            network.zero_grad()
            values = entries_of(plan, spec, cores, indices)
            assert_matches(values, reference(spec, arrays(network))[where], scale)
            weights = torch.randn(batch_size, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
            values.backward(weights)
            upstream = np.zeros(spec.shape)
            np.add.at(upstream, where, weights.numpy())
            assert_gradients_match(network, upstream)
    assert joined or spec.num_cores == 1


@pytest.mark.parametrize("num", [2, 3, 4])
def test_gradients_can_be_differentiated_and_taken_several_at_a_time(num):
    tables, rows = tables_and_rows(num, count=6, width=3)
    torch.autograd.gradcheck(lambda *t: product_sum(list(t), rows), tables)
    torch.autograd.gradgradcheck(lambda *t: product_sum(list(t), rows), tables)
    values, ones = product_sum(tables, rows), torch.eye(6, dtype=torch.float64)
    each = torch.func.vmap(lambda grad: torch.autograd.grad(values, tables, grad, retain_graph=True))(ones)
    _, pull = torch.func.vjp(lambda *t: product_sum(list(t), rows), *tables)
    older = torch.autograd.grad(values, tables, ones, is_grads_batched=True, retain_graph=True)
    several = torch.func.vmap(pull)(ones)
    for found in (older, several):
        assert all(torch.allclose(one, other, rtol=1e-14) for one, other in zip(each, found, strict=True))
    for n, grad in enumerate(ones):
        one = torch.autograd.grad(product_sum(tables, rows), tables, grad)
        assert all(torch.equal(many[n], single) for many, single in zip(each, one, strict=True))


def test_memory_can_still_be_resized():
    """FSDP2 frees whole parameters so."""
    tables, rows = tables_and_rows(2)
    product_sum(tables, rows).sum().backward()
    for tensor in (*tables, *rows, *(table.grad for table in tables)):
        assert tensor.untyped_storage().resizable()


def test_bits_do_not_depend_on_the_number_of_threads(monkeypatch):
    monkeypatch.setattr(kernels, "WORTH_A_THREAD", 1)
    found = []
    before = torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        tables, rows = tables_and_rows(3, count=1000, width=20, dtype=torch.float32)
        values = product_sum(tables, rows)
        values.square().sum().backward()
        found.append([values.detach(), *(table.grad for table in tables)])
    torch.set_num_threads(before)
    assert all(torch.equal(one, three) for one, three in zip(*found, strict=True))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated")  # torch's own way to trace
def test_a_compiler_sees_what_comes_out():
    network = distsam.TensorNetwork(distsam.cp((30, 20, 10), 4))
    plan = plan_cut(network.spec, ((0,), (1,), (2,)), 64, fused=True)
    indices = draw_indices(network.spec, 64)
    compiled = torch.compile(lambda *cores: entries_of(plan, network.spec, cores, indices), backend="aot_eager")
    torch.testing.assert_close(compiled(*network.cores), entries_of(plan, network.spec, list(network.cores), indices))


def test_they_run_where_they_are_asked_for_and_nowhere_else(monkeypatch):
    spec, indices = distsam.cp((200, 200, 200), 10), torch.randint(200, (5000, 3))
    network = distsam.TensorNetwork(spec)
    called = []
    monkeypatch.setattr("distsam.tensornet.entries.product_sum", lambda *a: called.append(a) or product_sum(*a))
    by_torch = network.at(indices)
    assert not called
    assert "numba" not in spec.plan(5000).describe()
    monkeypatch.setenv(KERNELS, "numba")
    torch.testing.assert_close(network.at(indices), by_torch)
    assert len(called) == 1
    assert "in one pass compiled by numba" in spec.plan(5000).describe()
    with torch.autocast("cpu", torch.bfloat16):
        assert network.at(indices).dtype == torch.float32
    lower = distsam.TensorNetwork(spec, dtype=torch.bfloat16)
    assert lower.at(indices).dtype == torch.bfloat16
    assert len(called) == 2, "numba has no bfloat16"
    assert not kernels.serve(torch.float32, torch.device("cuda"))
    monkeypatch.setenv(KERNELS, "torch")
    assert torch.equal(network.at(indices), by_torch)


def test_a_ceiling_counts_what_they_need_not_keep():
    spec = distsam.tr((200, 200, 200), 10)
    fused, other = (plan_entries(spec, 100_000, fused=is_fused) for is_fused in (True, False))
    assert fused.fused
    assert fused.peak_elements < other.peak_elements


def test_a_wrong_name_and_a_missing_numba_are_said(monkeypatch):
    network = distsam.TensorNetwork(distsam.cp((3, 3), 2))
    monkeypatch.setenv(KERNELS, "c++")
    with pytest.raises(distsam.InputError, match=r"DISTSAM_KERNELS is 'c\+\+'; either torch \(or not set\), or numba"):
        network.at(torch.zeros(1, 2, dtype=torch.int64))
    monkeypatch.setitem(sys.modules, "numba", None)
    kernels._loops.cache_clear()
    asked_for.cache_clear()
    monkeypatch.setenv(KERNELS, "numba")
    with pytest.raises(distsam.InputError, match=r"not installed: pip install 'distsam\[kernels\]'"):
        network.at(torch.zeros(1, 2, dtype=torch.int64))
