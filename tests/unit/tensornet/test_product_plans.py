import numpy as np
import pytest
import torch
from einsum_reference import RELATIVE, arrays, assert_gradients_match, assert_matches, draw, reference
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import any_network

import distsam
from distsam.tensornet.contraction import contract, plan_contraction
from distsam.tensornet.product_plans import candidate_products, plan_product
from distsam.tensornet.products import plan_multiply, product_of
from distsam.tensornet.ranks import weight_spec
from distsam.tensornet.room import Room
from distsam.tensornet.sliced import SlicedPlan, contract_sliced

# Numpy's number for the batch; modes are numbered from 0.
BATCH = 50


def check_product(spec, modes, batch_size, plans):
    """Values, and the gradients of the cores and of the vectors, against numpy's einsum of all cores."""
    network = draw(spec)
    dense, scale = (reference(spec, cores) for cores in (arrays(network), [np.abs(core) for core in arrays(network)]))
    others = [mode for mode in spec.modes if mode not in modes]
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn(batch_size, *(spec.size(m) for m in modes), dtype=torch.float64, generator=generator)
    upstream = torch.randn(batch_size, *(spec.size(m) for m in others), dtype=torch.float64, generator=generator)
    place = {mode: n for n, mode in enumerate(spec.modes)}
    own, rest = [place[m] for m in modes], [place[m] for m in others]

    expected = np.einsum(vectors, [BATCH, *own], dense, [*place.values()], [BATCH, *rest])
    magnitude = np.einsum(vectors.abs(), [BATCH, *own], scale, [*place.values()], [BATCH, *rest])
    of_dense = np.einsum(upstream, [BATCH, *rest], vectors, [BATCH, *own], [*place.values()])
    of_vectors = np.einsum(upstream, [BATCH, *rest], dense, [*place.values()], [BATCH, *own])
    vectors.requires_grad_()
    for plan in plans:
        network.zero_grad()
        vectors.grad = None
        found = product_of(plan, list(network.cores), vectors)
        assert_matches(found, expected, magnitude)
        found.backward(upstream)
        assert_gradients_match(network, of_dense)
        most = np.einsum(upstream.abs(), [BATCH, *rest], scale, [*place.values()], [BATCH, *own]).max(initial=0.0)
        assert np.abs(vectors.grad.numpy() - of_vectors).max(initial=0.0) <= RELATIVE * most


@settings(max_examples=30, deadline=None, derandomize=True)
@given(spec=any_network(), batch_size=st.integers(0, 5), data=st.data())
def test_every_plan_of_any_network_gives_the_einsum_and_its_gradients(spec, batch_size, data):
    modes = tuple(data.draw(st.permutations(spec.modes))[: data.draw(st.integers(0, spec.order))])
    plans = list(candidate_products(spec, modes, max(batch_size, 1), ceiling=True))
    check_product(spec, modes, batch_size, plans)


@pytest.mark.parametrize("format", ["tt_matrix", "tt", "tr", "cp", "tucker"])
def test_every_plan_of_a_layer_in_slices_gives_the_einsum(format, monkeypatch):
    monkeypatch.setattr("distsam.tensornet.product_plans.SLICE_ELEMENTS", (64, 16))
    monkeypatch.setattr("distsam.tensornet.product_plans.SMALL_TABLE", 16)
    spec = weight_spec(format, (3, 4), (2, 5), 2)
    plans = list(candidate_products(spec, spec.modes[2:], 7, ceiling=True))
    # A last slice that is shorter is among them, and two indices cut at once.
    assert any(7 % length for plan in plans for index, length in plan.joined.slices if index == "*")
    assert any(len(plan.joined.slices) > 1 for plan in plans)
    check_product(spec, spec.modes[2:], 7, plans)


def test_a_plan_in_slices_can_be_differentiated_twice():
    spec = weight_spec("tt_matrix", (2, 3), (3, 2), 2)
    plan = next(p for p in candidate_products(spec, spec.modes[2:], 4, ceiling=True) if len(p.joined.slices) > 1)
    cores = [core.detach().requires_grad_() for core in draw(spec).cores]
    vectors = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)

    def evaluate(vectors, *cores):
        return product_of(plan, cores, vectors)

    assert torch.autograd.gradcheck(evaluate, (vectors, *cores), fast_mode=True)
    assert torch.autograd.gradgradcheck(evaluate, (vectors, *cores), fast_mode=True)


def test_a_plan_in_slices_can_be_mapped_and_differentiated_by_torch_func():
    spec = weight_spec("tt_matrix", (2, 3), (3, 2), 2)
    plan = next(p for p in candidate_products(spec, spec.modes[2:], 4, ceiling=True) if p.joined.slices)
    cores = [core.detach() for core in draw(spec).cores]
    many = torch.randn(3, 4, 3, 2, dtype=torch.float64)
    mapped = torch.func.vmap(lambda vectors: product_of(plan, cores, vectors))(many)
    torch.testing.assert_close(mapped, torch.stack([product_of(plan, cores, v) for v in many]), rtol=1e-13, atol=1e-13)
    per_example = torch.func.vmap(torch.func.grad(lambda v, c: product_of(plan, c, v).square().sum(), 1), (0, None))
    found = per_example(many, cores)
    for n, vectors in enumerate(many):
        expected = torch.func.grad(lambda c, v=vectors: product_of(plan, c, v).square().sum())(cores)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours[n], theirs, rtol=1e-12, atol=1e-12)


def test_slices_of_a_sum_add_up_and_rows_are_gathered_slice_by_slice():
    """Cutting an index that is summed over, and a table of which each of the batch takes a row."""
    plan = plan_contraction((("*", "b"), ("b", "c")), ("*", "c"), (("*", 5), ("b", 4), ("c", 3)))
    generator = torch.Generator().manual_seed(0)
    table, core = (torch.randn(n, 4, dtype=torch.float64, generator=generator) for n in (6, 3))
    table.requires_grad_()
    core = core.t().requires_grad_()
    rows = torch.tensor([5, 0, 0, 3, 5])
    sliced = SlicedPlan(plan, (("*", 2), ("b", 3)), (True, False))
    found = contract_sliced(sliced, [table, core], [rows, None])
    whole = contract(plan, [table[rows], core])
    torch.testing.assert_close(found, whole, rtol=1e-14, atol=1e-14)
    upstream = torch.randn(whole.shape, dtype=torch.float64, generator=generator)
    for ours, theirs in zip(
        torch.autograd.grad(found, [table, core], upstream),
        torch.autograd.grad(whole, [table, core], upstream),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-14)


def test_autocast_computes_a_plan_in_slices_in_lower_precision():
    spec = weight_spec("tt_matrix", (4, 4), (4, 4), 4)
    plan = next(p for p in candidate_products(spec, spec.modes[2:], 8, ceiling=True) if p.joined.slices)
    cores = list(distsam.TensorNetwork(spec).cores)
    vectors = torch.randn(8, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        found = product_of(plan, cores, vectors)
    assert found.dtype == torch.bfloat16
    found.float().sum().backward()
    exact = product_of(plan, cores, vectors)
    # Two products of bfloat16 numbers (2^-8 each) one after the other, and the cast of what goes in.
    assert (found.float() - exact).norm() < 4 * 2**-8 * exact.norm()
    assert all(core.grad is not None and core.grad.dtype == torch.float32 for core in cores)


def test_a_large_weight_is_never_whole_in_memory():
    """4096 x 4096 of bond 32 once took 266 MiB forward and backward, three times the dense matrix."""
    spec = weight_spec("tt_matrix", (8,) * 4, (8,) * 4, 32)
    plan = plan_product(spec, spec.modes[4:], 256)
    assert plan.joined.slices
    # Beside the weight its gradient would be there too.
    assert plan.peak_elements < 4096 * 4096


def test_the_cheapest_plan_is_taken_and_under_a_ceiling_the_cheapest_below_it():
    spec = weight_spec("tt_matrix", (8,) * 3, (8,) * 3, 16)
    modes = spec.modes[3:]
    plans = list(candidate_products(spec, modes, 128))
    best = plan_product(spec, modes, 128)
    alike = [plan for plan in plans if plan.cost_ns <= 1.05 * min(plan.cost_ns for plan in plans)]
    assert best.peak_elements == min(plan.peak_elements for plan in alike)
    low = plan_product(spec, modes, 128, best.peak_elements // 2)
    assert low.peak_elements <= best.peak_elements // 2
    assert low.cost_ns >= best.cost_ns


def test_plans_of_a_layer_are_found_once():
    spec = weight_spec("tt_matrix", (4, 4), (4, 4), 4)
    first, again = (plan_multiply(spec, spec.modes[2:]) for _ in range(2))
    assert all(a is b for a, b in zip(first.plans, again.plans, strict=True))


def test_small_factors_are_multiplied_with_each_other_before_they_meet_the_vectors():
    """More multiplications than one factor after the other, in fewer and wider products: measured twice as fast."""
    spec = weight_spec("tucker", (8,) * 4, (8,) * 4, 4)
    plan = plan_product(spec, spec.modes[4:], 256)
    [one_by_one, *_] = candidate_products(spec, spec.modes[4:], 256)
    assert plan.multiply_adds > one_by_one.multiply_adds
    assert plan.order.startswith("2 neighbours together")
    assert plan.cost_ns < 0.75 * one_by_one.cost_ns


def test_memory_of_slices_is_used_again():
    """As many fresh tensors in ten slices as in two: what slices make is made in the same places."""
    spec = weight_spec("tt_matrix", (4, 4, 4), (4, 4, 4), 6)
    network, vectors = draw(spec), torch.randn(40, 4, 4, 4, dtype=torch.float64, requires_grad=True)
    [whole, *_] = candidate_products(spec, spec.modes[3:], 40)

    def fresh(length):
        plan = SlicedPlan(whole.joined.plan, (("*", length),), whole.joined.gathered)
        with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as found:
            contract_sliced(plan, [vectors, *network.cores], [None] * 4).sum().backward()
        events = found.profiler.kineto_results.events()
        # Of 4^6 numbers is the weight.
        return sum(e.name() == "[memory]" and e.nbytes() >= 8 * 4**6 for e in events)

    assert fresh(20) > 0
    assert fresh(4) == fresh(20)


@pytest.mark.parametrize(("outputs", "inputs", "bond"), [((8, 2), (8, 4), 8), ((4, 4), (4, 4), 8)])
def test_whatever_is_made_once_needs_nothing_that_is_made_in_slices(outputs, inputs, bond):
    """Each plan takes all of its operands; bonds so wide that what lies between is larger than the weight."""
    spec = weight_spec("tr", outputs, inputs, bond)
    for batch_size in (1, 50):
        for plan in candidate_products(spec, spec.modes[2:], batch_size, ceiling=True):
            assert len(plan.joined.plan.operands) == len(plan.joined.plan.pairs) + 1
            assert sorted(k for table in plan.tables for k in table.cores) == list(range(spec.num_cores))


def test_a_plan_in_slices_gives_several_gradients_at_a_time():
    """As torch.autograd.functional.jacobian(vectorize=True) asks for them, by a vmap older than torch.func's."""
    spec = weight_spec("tt_matrix", (3, 2), (2, 2), 2)
    network, vectors = draw(spec), torch.randn(4, 2, 2, dtype=torch.float64, requires_grad=True)
    [whole, *_] = candidate_products(spec, spec.modes[2:], 4)
    plan = SlicedPlan(whole.joined.plan, (("*", 3),), whole.joined.gathered)
    leaves = [vectors, *network.cores]
    result = contract_sliced(plan, leaves, [None] * 3)
    ones = torch.eye(result.numel(), dtype=torch.float64).reshape(-1, *result.shape)
    several = torch.autograd.grad(result, leaves, ones, is_grads_batched=True, retain_graph=True)
    for n, one in enumerate(ones):
        for many, single in zip(several, torch.autograd.grad(result, leaves, one, retain_graph=True), strict=True):
            torch.testing.assert_close(many[n], single)


def test_memory_is_kept_for_slices_that_alternate_in_length():
    room, like = Room(), torch.zeros(1)
    places = set()
    for length in (3, 1, 3, 1, 2):
        room.again()
        places.add(room.empty(like, (length, 5)).data_ptr())
    assert len(places) == 1
