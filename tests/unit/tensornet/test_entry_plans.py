import pytest
import torch
from einsum_reference import draw, draw_indices
from torch.utils._python_dispatch import TorchDispatchMode

import distsam
from distsam.tensornet.contraction import contract, plan_contraction
from distsam.tensornet.cuts import connected_cuts
from distsam.tensornet.entries import entries_of
from distsam.tensornet.planner import BLOCK_ELEMENTS, plan_cut, plan_entries, ways_to_join

TT = distsam.tt((200, 200, 200), 20)


def merged_sizes(plan):
    return sorted(len(group.cores) for group in plan.groups)


def test_many_entries_of_a_tensor_train_merge_two_cores():
    assert merged_sizes(plan_entries(TT, 100_000)) == [1, 2]


def test_one_entry_merges_nothing():
    for spec in (TT, distsam.tr((200, 200, 200), 10), distsam.cp((200, 200, 200), 10)):
        assert max(merged_sizes(plan_entries(spec, 1))) == 1


def test_a_small_tensor_is_rebuilt_for_many_entries():
    assert merged_sizes(plan_entries(distsam.tr((6, 5, 4), 2), 100_000)) == [3]


def test_modes_too_large_to_merge_are_taken_row_by_row():
    plan = plan_entries(distsam.tt((100_000, 100_000, 100_000), 20), 1000)
    assert merged_sizes(plan) == [1, 1, 1]


@pytest.mark.parametrize("bond_dim", [10, 20])
def test_no_tensor_of_batch_by_bond_by_bond_is_made_for_the_tensor_train(bond_dim):
    spec = distsam.tt((200, 200, 200), bond_dim)
    # The batch counts as the next power of two.
    assert plan_entries(spec, 100_000).batch_elements <= 2**17 * bond_dim
    counter = LargestTensor()
    network = distsam.TensorNetwork(spec)
    with counter:
        network.at(torch.zeros(100_000, 3, dtype=torch.int64)).sum().backward()
    # The merged table, or one block of gathered numbers; a batch of slices would be 10 times either.
    assert counter.num_elements <= max(200 * 200 * bond_dim, BLOCK_ELEMENTS)


class LargestTensor(TorchDispatchMode):
    """Sees the result of every torch operation, backward included."""

    num_elements = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                # A broadcast view has elements without memory: count those of the storage.
                self.num_elements = max(self.num_elements, tensor.untyped_storage().nbytes() // tensor.itemsize)
        return result


def test_plans_are_kept_per_power_of_two():
    assert plan_entries(TT, 65) is plan_entries(TT, 128)
    assert plan_entries(TT, 0) is plan_entries(TT, 1)


def test_the_chosen_plan_is_the_cheapest_of_all_cuts():
    for batch_size in (1, 64, 4096, 2**17):
        costs = [way.cost_ns for cut in connected_cuts(TT) for way in ways_to_join(TT, cut, batch_size)]
        assert plan_entries(TT, batch_size).cost_ns == min(costs)


def test_cuts_of_a_tensor_train_are_its_intervals():
    cuts = {tuple(sorted(cut)) for cut in connected_cuts(distsam.tt((3, 3, 3, 3), 2))}
    assert len(cuts) == 8  # a bond is cut or not: 2^3
    assert ((0, 2), (1, 3)) not in cuts


def test_a_long_train_gets_a_plan_without_trying_all_cuts():
    spec = distsam.tt((4,) * 12, 4)
    plan = plan_entries(spec, 50_000)
    assert sorted(k for group in plan.groups for k in group.cores) == list(range(12))
    assert len(plan.groups) < 12
    network = draw(spec)
    indices = draw_indices(spec, 5)
    single = plan_cut(spec, tuple((k,) for k in range(12)), 5)
    assert plan.cost_ns < plan_cut(spec, single.cut, 65536).cost_ns
    assert torch.allclose(network.at(indices), network.dense()[tuple(indices.T)], rtol=0, atol=1e-12)


def test_contraction_costs_are_those_of_the_worked_example():
    """(10 x 2)(2 x 20)(20 x 3): right first 2*20*3 + 10*2*3 = 180, left first 10*2*20 + 10*20*3 = 1000."""
    sizes = (("a", 10), ("b", 2), ("c", 20), ("d", 3))
    plan = plan_contraction((("a", "b"), ("b", "c"), ("c", "d")), ("a", "d"), sizes)
    assert plan.multiply_adds == 180
    assert plan.intermediates == (6, 30)


def test_an_index_that_only_one_operand_has_is_summed():
    plan = plan_contraction((("a", "b"), ("a", "c")), ("c",), (("a", 2), ("b", 3), ("c", 4)))
    left, right = torch.randn(2, 3), torch.randn(2, 4)
    assert torch.allclose(contract(plan, [left, right]), left.sum(1) @ right, atol=1e-6)


def test_a_plan_holds_for_other_sizes_than_it_was_made_for():
    plan = plan_contraction((("a", "b"), ("b", "c")), ("c", "a"), (("a", 2), ("b", 3), ("c", 4)))
    left, right = torch.randn(5, 6), torch.randn(6, 7)
    assert torch.allclose(contract(plan, [left, right]), (left @ right).T)


def test_the_worked_example_of_the_readme_costs_what_it_says():
    """README.md: 100,000 entries of a (200,200,200) TT with bond 10."""
    spec = distsam.tt((200, 200, 200), 10)
    costs_ms = {plan.cut: plan.cost_ns / 1e6 for plan in (plan_cut(spec, cut, 2**17) for cut in connected_cuts(spec))}
    expected = {((0,), (1,), (2,)): 112, ((0, 1), (2,)): 11, ((0,), (1, 2)): 11, ((0, 1, 2),): 44}
    assert {cut: round(ms) for cut, ms in costs_ms.items()} == expected
    plan = plan_entries(spec, 100_000)
    assert plan.multiply_adds == 200 * 10 * 200 * 10 + 2**17 * 10
    assert plan.work.column_elements == 2**17 * 2 * 10


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("cut", [((0, 1), (2,)), ((0,), (1,), (2,)), ((0, 1, 2),)])
def test_gradients_of_repeated_entries_are_the_same_bits_every_time(cut, threads):
    """Scatter-adds that race over threads would break bit-identical resume."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        network = distsam.TensorNetwork(distsam.tt((50, 40, 30), 8), generator=torch.Generator().manual_seed(0))
        indices = draw_indices(network.spec, 20_000)
        indices[:, 0] %= 3
        plan = plan_cut(network.spec, cut, 20_000)
        grads = []
        for _ in range(3):
            network.zero_grad()
            entries_of(plan, network.spec, list(network.cores), indices).square().sum().backward()
            grads.append([core.grad.clone() for core in network.cores])
        assert all(torch.equal(a, b) for run in grads[1:] for a, b in zip(grads[0], run, strict=True))
    finally:
        torch.set_num_threads(before)


def test_rows_of_a_table_much_longer_than_the_batch_are_taken_where_they_lie():
    """Laid out as columns it was copied in every pass, and its gradient was a transposed tensor."""
    spec, single = distsam.cp((2**20, 9), 8), ((0,), (1,))
    assert plan_cut(spec, single, 2**19).batch_last
    assert not plan_cut(spec, single, 2**18).batch_last
    assert not plan_cut(distsam.cp((2**10, 9), 8), single, 2**8).batch_last  # small ones too
    network = draw(spec)
    indices = draw_indices(spec, 64)
    network.at(indices).sum().backward()
    long, short = (core.detach() for core in network.cores)
    rows, columns = indices.T
    assert torch.allclose(network.at(indices), (long[rows] * short[columns]).sum(1), rtol=0, atol=1e-12)
    gradient = torch.zeros_like(long).index_add_(0, rows, short[columns])
    assert torch.allclose(network.cores[0].grad, gradient, rtol=0, atol=1e-12)
    assert network.cores[0].grad.is_contiguous()
