"""What the ledger notes of operations whose bytes and work are known by hand."""

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from distsam.sharding.fake_world import fake_world
from distsam.train.ledger import Ledger, Use

KIB = 1024


def test_the_most_of_each_use_and_the_peak_are_those_of_what_lives_together() -> None:
    ledger = Ledger()
    with FakeTensorMode(), ledger.watching():
        weight = torch.empty(KIB)
        ledger.label(Use.CORES, [weight])
        ledger.begin()
        first = torch.empty(2 * KIB)
        view = first[:KIB]
        del first  # still held by the view
        second = torch.empty(KIB)
        del view
        third = torch.empty(KIB)
        ledger.label(Use.GRADIENTS, [third])
        most, peak = ledger.most()
        del second
    assert (most[Use.CORES], most[Use.GRADIENTS], most[Use.WORKING]) == (4 * KIB, 4 * KIB, 12 * KIB)
    assert peak == 16 * KIB


def test_what_a_step_frees_and_takes_behind_torch_is_seen() -> None:
    """FSDP2 resizes the memory of gathered weights, which no operator says."""
    ledger = Ledger()
    with FakeTensorMode(), ledger.watching():
        gathered = torch.empty(KIB)
        gathered.untyped_storage().resize_(0)
        ledger.begin()
        assert ledger.most()[1] == 0
        gathered.untyped_storage().resize_(8 * KIB)
        gathered.untyped_storage().resize_(0)
        most, peak = ledger.most()
    assert (most[Use.COMMUNICATION], peak) == (8 * KIB, 8 * KIB)


def test_a_linear_layer_takes_two_operations_a_weight_and_example_each_way() -> None:
    ledger = Ledger()
    with FakeTensorMode(), ledger.watching():
        layer, inputs = nn.Linear(32, 16, bias=False), torch.empty(8, 32)
        ledger.begin()
        outputs = layer(inputs)
        forward = ledger.flops
        outputs.backward(torch.empty(8, 16))
    assert forward == 2 * 8 * 32 * 16
    # The gradient of the weight, as much again; and an element each for what copies and fills make.
    assert 2 * forward <= ledger.flops < 2 * forward + 4 * 32 * 16


def test_reads_of_fake_numbers_are_answered_and_those_of_real_ones_are_true() -> None:
    real = torch.tensor([7, 8])
    with FakeTensorMode(allow_non_fake_inputs=True), Ledger().watching():
        fake = torch.randn(3)
        assert fake[0].item() == 1.0
        assert fake.long().tolist() == [0, 0, 0]
        assert torch.isfinite(fake).all()
        assert (real + 1).tolist() == [8, 9]


def test_a_fake_model_takes_another_dtype_and_what_is_tied_stays_so() -> None:
    with fake_world(0, 1), FakeTensorMode():
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4))
        model[1].weight = model[0].weight
        model.to(torch.float64)
        assert model[1].weight is model[0].weight
        assert {t.dtype for t in (*model.parameters(), model[2].running_mean)} == {torch.float64}
        assert model[2].num_batches_tracked.dtype == torch.int64
