import numpy as np
import pytest
import torch
from einsum_reference import SPECS, arrays, assert_gradients_match, assert_matches, draw, draw_indices, reference
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import any_network

import distsam
from distsam.tensornet.cuts import connected_cuts
from distsam.tensornet.entries import entries_at, entries_of, mark_outside
from distsam.tensornet.planner import plan_cut, ways_to_join


def scatter(shape, indices, weights):
    upstream = np.zeros(shape)
    np.add.at(upstream, tuple(indices.numpy().T), weights.numpy())
    return upstream


def check_entries(network, indices, cut=None):
    spec = network.spec
    network.zero_grad()
    plan = plan_cut(spec, cut, len(indices)) if cut else None
    values = entries_of(plan, spec, list(network.cores), indices) if plan else network.at(indices)
    where = tuple(indices.numpy().T)
    scale = reference(spec, [np.abs(core) for core in arrays(network)])
    assert_matches(values, reference(spec, arrays(network))[where], scale)
    weights = torch.randn(len(indices), dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    values.backward(weights)
    assert_gradients_match(network, scatter(spec.shape, indices, weights))


@pytest.mark.parametrize("name", SPECS)
def test_dense_and_its_gradients_equal_the_explicit_einsum(name):
    network = draw(SPECS[name])
    dense = network.dense()
    assert_matches(
        dense, reference(network.spec, arrays(network)), reference(network.spec, [np.abs(c) for c in arrays(network)])
    )
    upstream = torch.randn(dense.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    dense.backward(upstream)
    assert_gradients_match(network, upstream.numpy())


@pytest.mark.parametrize("batch_size", [0, 1, 2, 37])
@pytest.mark.parametrize("name", SPECS)
def test_entries_and_their_gradients_equal_the_explicit_einsum(name, batch_size):
    network = draw(SPECS[name])
    check_entries(network, draw_indices(network.spec, batch_size))


@pytest.mark.parametrize("name", [name for name in SPECS if name != "tr order 6"])
def test_every_cut_into_groups_gives_the_same_entries_and_gradients(name):
    network = draw(SPECS[name])
    for batch_size in (0, 1, 11):
        indices = draw_indices(network.spec, batch_size)
        for cut in connected_cuts(network.spec):
            check_entries(network, indices, cut)


@pytest.mark.parametrize("name", SPECS)
def test_entries_pass_gradcheck_and_gradgradcheck(name):
    network = draw(SPECS[name])
    indices = draw_indices(network.spec, 4)

    def evaluate(*cores):
        return torch.func.functional_call(network, {f"cores.{k}": core for k, core in enumerate(cores)}, (indices,))

    cores = tuple(core.detach().requires_grad_() for core in network.cores)
    assert torch.autograd.gradcheck(evaluate, cores, fast_mode=True)
    assert torch.autograd.gradgradcheck(evaluate, cores, fast_mode=True)


def test_dense_passes_gradcheck():
    network = draw(distsam.tucker((3, 2, 2), (2, 2, 2)))
    cores = tuple(core.detach().requires_grad_() for core in network.cores)

    def evaluate(*cores):
        network_of = {f"cores.{k}": core for k, core in enumerate(cores)}
        return torch.func.functional_call(DenseOf(network), {f"network.{k}": v for k, v in network_of.items()}, ())

    assert torch.autograd.gradcheck(evaluate, cores)


class DenseOf(torch.nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self):
        return self.network.dense()


@st.composite
def specs(draw):
    shape = draw(st.lists(st.integers(1, 4), min_size=2, max_size=5))
    format = draw(st.sampled_from(["cp", "tucker", "tt", "tr"]))
    count = {"cp": 1, "tucker": len(shape), "tt": len(shape) - 1, "tr": len(shape)}[format]
    bonds = draw(st.lists(st.integers(1, 3), min_size=count, max_size=count))
    try:
        return getattr(distsam, format)(shape, bonds[0] if format == "cp" else bonds)
    except distsam.InputError:
        return getattr(distsam, format)(shape, 1 if format == "cp" else [1] * count)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(spec=specs(), batch_size=st.integers(0, 9), seed=st.integers(0, 99))
def test_any_shape_and_bonds_give_the_entries_of_the_einsum(spec, batch_size, seed):
    check_entries(draw(spec, seed), draw_indices(spec, batch_size, seed))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(spec=specs(), batch_size=st.integers(0, 5), data=st.data())
def test_any_cut_of_any_shape_gives_the_entries_of_the_einsum(spec, batch_size, data):
    cut = data.draw(st.sampled_from(list(connected_cuts(spec))))
    check_entries(draw(spec), draw_indices(spec, batch_size), cut)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["cp", "tucker", "tt", "tr"])
def test_lower_precisions_keep_their_dtype_and_accuracy(name, dtype):
    spec = SPECS[name]
    network = distsam.TensorNetwork(spec, dtype=dtype, generator=torch.Generator().manual_seed(0))
    exact = reference(spec, [core.detach().double().numpy() for core in network.cores])
    scale = reference(spec, [core.detach().double().abs().numpy() for core in network.cores]).max()
    # Roundings of up to K - 1 pairs, each sum at most (4 x 4 terms) long, on the natural scale.
    tolerance = 16 * spec.num_cores * torch.finfo(dtype).eps * scale
    indices = draw_indices(spec, 9)
    values = network.at(indices)
    assert values.dtype == network.dense().dtype == dtype
    assert np.abs(values.detach().double().numpy() - exact[tuple(indices.numpy().T)]).max() < tolerance
    values.sum().backward()
    assert all(core.grad is not None and core.grad.dtype == dtype for core in network.cores)


@pytest.mark.parametrize("name", SPECS)
def test_euler_identity_holds_for_every_format(name):
    """<G_k, g_k> = <T, dL/dT> for every core: what the norm laws stand on."""
    network = draw(SPECS[name])
    target = torch.randn(network.spec.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (network.dense() - target).pow(4).sum().backward()
    products = torch.stack([(core * core.grad).sum().detach() for core in network.cores])
    scale = max(float(core.detach().norm() * core.grad.norm()) for core in network.cores)
    assert float(products.max() - products.min()) < 1e-12 * scale


@pytest.mark.parametrize(("position", "message"), [(3, "0 to 2"), (-1, "-1"), (300, "300")])
def test_positions_outside_their_mode_are_refused_whatever_the_plan(position, message):
    """Combined rows once let position 3 of a mode of size 3 fall into the next row."""
    network = draw(distsam.tt((5, 4, 3), 2))
    indices = draw_indices(network.spec, 6)
    indices[2, 2] = position
    for cut in connected_cuts(network.spec):
        with pytest.raises(IndexError, match=message):
            entries_of(plan_cut(network.spec, cut, 6), network.spec, list(network.cores), indices)


def test_on_an_accelerator_an_entry_outside_is_marked_in_every_mode():
    """It has no check that the host can raise from; (0, 3) of a (4, 3) tensor would be read as (1, 0)."""
    indices = torch.tensor([[0, 0], [3, 2], [0, 3], [4, 0], [-1, 1], [1, -1]])
    assert mark_outside(indices, (4, 3)).tolist() == [[0, 0], [3, 2], *[[-1, -1]] * 4]


@pytest.mark.parametrize("spec", [distsam.cp((5, 4, 3), 2), distsam.tucker((5, 4, 3), (2, 2, 2))])
def test_entries_can_be_differentiated_by_torch_func(spec: distsam.NetworkSpec) -> None:
    """jacrev runs backward under vmap, where a tensor of zeros took no gradients of several outputs."""
    network = distsam.TensorNetwork(spec, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    indices = torch.tensor([[0, 1, 2], [4, 3, 0], [0, 1, 2]])
    params = {name: p.detach() for name, p in network.named_parameters()}
    found = torch.func.jacrev(lambda p: torch.func.functional_call(network, p, (indices,)))(params)
    for row, value in enumerate(network.at(indices)):
        grads = torch.autograd.grad(value, list(network.parameters()), retain_graph=True)
        for jacobian, grad in zip(found.values(), grads, strict=True):
            torch.testing.assert_close(jacobian[row], grad, rtol=1e-14, atol=1e-15)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(spec=any_network(), batch_size=st.integers(0, 5), data=st.data())
def test_every_way_to_join_rows_of_any_network_gives_the_einsum_and_its_gradients(spec, batch_size, data):
    """Trees, rings, indices of three cores and more, bonds of 1; all modes fixed, or some: slices of any length too."""
    cut = data.draw(st.sampled_from(list(connected_cuts(spec))))
    fixed = tuple(sorted(data.draw(st.sets(st.sampled_from(spec.modes), min_size=1)), key=spec.place_of_mode.get))
    network = draw(spec)
    generator = torch.Generator().manual_seed(2)
    at = {mode: torch.randint(spec.size(mode), (batch_size,), generator=generator) for mode in fixed}
    others = [mode for mode in spec.modes if mode not in fixed]
    weights = torch.randn(batch_size, *map(spec.size, others), dtype=torch.float64, generator=generator)

    def rows_of(tensor):
        """A view of the tensor with the fixed modes in front, and where in it the rows are."""
        order = [spec.place_of_mode[mode] for mode in (*fixed, *others)]
        return tensor.transpose(order), tuple(at[mode].numpy() for mode in fixed)

    expected, scale = (
        reference(spec, cores) for cores in (arrays(network), [np.abs(core) for core in arrays(network)])
    )
    upstream = np.zeros(spec.shape)
    front, where = rows_of(upstream)
    np.add.at(front, where, weights.numpy())
    for plan in ways_to_join(spec, cut, batch_size, fixed, ceiling=True, fused=True):
        network.zero_grad()
        values = entries_at(plan, spec, list(network.cores), at)
        assert_matches(values, *(tensor[place] for tensor, place in map(rows_of, (expected, scale))))
        values.backward(weights)
        assert_gradients_match(network, upstream)
