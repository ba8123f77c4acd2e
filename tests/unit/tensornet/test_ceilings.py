"""`max_peak_bytes`, `NetworkSpec.plan` and what they say."""

import re
import time
from itertools import accumulate

import pytest
import torch
from einsum_reference import SPECS, draw, draw_indices
from torch.profiler import ProfilerActivity, profile

import distsam
from distsam.tensornet.layers import TensorizedEmbedding, TensorizedLinear
from distsam.tensornet.planner import plan_entries
from distsam.tensornet.product_plans import candidate_products
from distsam.tensornet.products import product_of
from distsam.tensornet.ranks import weight_spec


def limited(spec, max_peak_bytes):
    generator = torch.Generator().manual_seed(0)
    return distsam.TensorNetwork(spec, dtype=torch.float64, generator=generator, max_peak_bytes=max_peak_bytes)


def least_of(message):
    return int(re.search(r"at least (\d+)", message)[1])


@pytest.mark.parametrize("name", SPECS)
def test_under_the_lowest_ceiling_entries_and_gradients_are_the_same(name):
    spec, batch_size = SPECS[name], 37
    indices = draw_indices(spec, batch_size)
    with pytest.raises(distsam.InputError, match="max_peak_bytes: is 8 bytes; 37 entries need at least") as refused:
        limited(spec, 8).at(indices)
    network, free = limited(spec, least_of(str(refused.value))), draw(spec)
    weights = torch.randn(batch_size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for one in (network, free):
        one.at(indices).backward(weights)
    torch.testing.assert_close(network.at(indices), free.at(indices), rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(network.cores, free.cores, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("format", ["tt_matrix", "tucker", "cp"])
def test_a_layer_and_a_table_under_the_lowest_ceiling_give_the_same(format):
    def made(layer, max_peak_bytes=None):
        arguments = {"format": format, "rank": 3, "out_shape": (6, 4), "in_shape": (4, 3)}
        seeded = torch.Generator().manual_seed(0)
        return layer(24, 12, dtype=torch.float64, generator=seeded, max_peak_bytes=max_peak_bytes, **arguments)

    for layer, given in (
        (lambda n, m, **rest: TensorizedLinear(m, n, bias=False, **rest), torch.randn(9, 12, dtype=torch.float64)),
        (TensorizedEmbedding, torch.randint(24, (9,))),
    ):
        with pytest.raises(distsam.InputError, match="max_peak_bytes: is 8 bytes; ") as refused:
            made(layer, 8)(given)
        low, free = made(layer, least_of(str(refused.value))), made(layer)
        torch.testing.assert_close(low(given), free(given), rtol=1e-12, atol=1e-12)


def allocated_bytes(step):
    """Of one call, at the worst moment: what torch's profiler saw allocated less what it saw freed."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    events = recorded.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return max(accumulate(number for _, number in changes))


@pytest.mark.parametrize(
    ("format", "outputs", "inputs", "bond", "count"),
    [("tr", (8, 8), (12, 12), 6, 300), ("tucker", (8, 8), (12, 12), 6, 300), ("tr", (8, 3, 7, 7), (3, 2, 4, 8), 5, 50)],
)
def test_no_plan_of_a_layer_takes_more_memory_than_it_says(format, outputs, inputs, bond, count):
    """In slices they once took up to 1.4 times what `peak_elements` calls the most."""
    spec = weight_spec(format, outputs, inputs, bond)
    cores = list(distsam.TensorNetwork(spec).cores)
    vectors, weights = torch.randn(count, *inputs, requires_grad=True), torch.randn(count, *outputs)
    modes = spec.modes[len(outputs) :]
    plans = [plan for plan in candidate_products(spec, modes, count, ceiling=True) if plan.cost_ns < 5e6]
    assert sum(bool(plan.joined.slices) for plan in plans) > 3
    for plan in plans:
        for leaf in (*cores, vectors):
            leaf.grad = None
        taken = allocated_bytes(lambda plan=plan: product_of(plan, cores, vectors).backward(weights))
        assert taken <= 4 * plan.peak_elements, plan


def test_a_row_that_is_asked_for_twice_is_computed_once():
    layer = TensorizedEmbedding(24, 12, rank=3)
    asked = []
    rows = layer._rows
    layer._rows = lambda ids: asked.append(len(ids)) or rows(ids)
    ids = torch.tensor([[3, 3, 5], [5, 3, 3]])
    torch.testing.assert_close(layer(ids), layer.weight[ids], rtol=1e-5, atol=1e-6)
    assert asked == [2]


def test_the_full_tensor_is_refused_above_the_ceiling():
    with pytest.raises(distsam.InputError, match="max_peak_bytes: is 1000 bytes; the full tensor needs at least"):
        limited(distsam.tt((20, 20, 20), 4), 1000).dense()


@pytest.mark.parametrize("value", [0, -1, 2.5, "much"])
def test_a_ceiling_that_is_none_is_refused(value):
    with pytest.raises(distsam.InputError, match="max_peak_bytes"):
        limited(distsam.tt((3, 3), 2), value)


def test_a_plan_below_the_ceiling_says_what_it_does():
    spec = weight_spec("tt_matrix", (8,) * 4, (8,) * 4, 32)
    plan = spec.plan(256, spec.modes[4:], max_peak_bytes=2**24)
    assert plan.peak_bytes <= 2**24
    text = plan.describe()
    assert text.startswith("256 vectors over i0 i1 i2 i3 of tt_matrix")
    assert "again in backward" in text
    assert "a dense layer of the same sizes" in text
    with pytest.raises(
        distsam.InputError, match="max_peak_bytes: is 1000 bytes; the least that would do is "
    ) as refused:
        spec.plan(256, spec.modes[4:], max_peak_bytes=1000)
    least = int(str(refused.value).rsplit(" ", 1)[1])
    assert spec.plan(256, spec.modes[4:], max_peak_bytes=least).peak_bytes == least


def test_the_plan_of_entries_is_the_one_that_runs():
    spec = distsam.tt((200, 200, 200), 10)
    plan = spec.plan(100_000)
    assert plan.plan is plan_entries(spec, 100_000)
    assert plan.flops == 2 * plan.plan.multiply_adds
    # Both ends cost the same.
    assert re.search(r"merge cores (0, 1|1, 2) into \[\1\], 10 x 200 x 200", plan.describe())


@pytest.mark.parametrize(("arguments", "message"), [((0,), "batch_size"), ((4, ["x"]), "vectors_over: has 'x'")])
def test_a_plan_of_nothing_is_refused(arguments, message):
    with pytest.raises(distsam.InputError, match=message):
        distsam.tt((3, 3), 2).plan(*arguments)


@pytest.mark.parametrize("kind", ["tt", "tr", "cp"])
def test_two_hundred_cores_are_planned_within_two_seconds(kind):
    bonds = {"tt": [4, *[8] * 197, 4], "tr": 4, "cp": 8}[kind]
    spec = getattr(distsam, kind)((4,) * 200, bonds)
    start = time.process_time()
    assert spec.plan(4096).describe()
    assert time.process_time() - start < 2


def test_a_layer_of_forty_cores_is_planned_within_two_seconds():
    spec = distsam.tt((2,) * 40, [2, *[4] * 37, 2])
    start = time.process_time()
    assert spec.plan(64, spec.modes[20:]).describe()
    assert time.process_time() - start < 2
