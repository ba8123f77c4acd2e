"""Layers replaced in a model: near to their weights, exact at full bonds, shared where they were shared, and back."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import distsam
from distsam.errors import ArgumentError
from distsam.tensornet.adapters import train_part
from distsam.tensornet.ranks import WEIGHT_FORMATS

every_format = pytest.mark.parametrize("format", WEIGHT_FORMATS)


class Model(nn.Module):
    """An embedding that shares its weight with the output, a layer that stands twice, and a convolution."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(60, 12, padding_idx=1)
        self.mix = nn.Linear(12, 12)
        self.again = self.mix
        self.conv = nn.Conv1d(12, 12, 3, padding=1)
        self.blocks = nn.ModuleList([nn.Linear(12, 24), nn.Linear(24, 12)])
        self.out = nn.Linear(12, 60, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.again(self.mix(self.embed(ids)).relu())
        x = self.conv(x.transpose(1, 2)).transpose(1, 2)
        y: Tensor = self.out(self.blocks[1](self.blocks[0](x).relu()))
        return y


IDS = torch.tensor([[0, 1, 59, 7], [5, 5, 30, 1]])


def tied(options: dict[str, Any]) -> dict[str, Any]:
    return {"embed": options, "out": options}


@pytest.mark.parametrize(
    ("format", "exact"), [("tucker", 1e-6), ("tt", 1e-6), ("tt_matrix", 1e-6), ("tr", 1e-6), ("cp", 1e-3)]
)
def test_full_bonds_leave_the_model_as_it_is(format: str, exact: float) -> None:
    """CP by alternating least squares ends where its steps no longer help, the others at float32's rounding."""
    model = Model().eval()
    wanted = model(IDS).detach()
    rule = {"format": format, "rank": "full"}
    table = distsam.tensorize(model, {"conv": None, **tied(rule), "type:Linear": rule})
    assert [row.name for row in table] == ["embed", "mix", "blocks.0", "blocks.1", "out"]
    assert all(row.relative_error < exact for row in table)
    assert float((model(IDS).detach() - wanted).norm() / wanted.norm()) < 10 * exact
    distsam.densify(model)
    assert [type(module) for module in model.blocks] == [nn.Linear, nn.Linear]
    assert float((model(IDS).detach() - wanted).norm() / wanted.norm()) < 10 * exact


def test_what_was_shared_stays_shared_there_and_back() -> None:
    model = Model()
    table = distsam.tensorize(model, {**tied({"rank": 3}), "mix": {"rank": 2}})
    assert model.mix is model.again
    assert model.embed.network is model.out.network
    assert [row.parameters_before for row in table] == [720, 144, 0]
    assert len(distsam.core_networks(model)) == 2
    # The padding row is zero for look-ups alone.
    rows = torch.arange(60) != 1
    assert torch.equal(model.out.weight[rows], model.embed.weight[rows])
    distsam.densify(model)
    assert model.mix is model.again
    assert model.embed.weight is model.out.weight


def test_one_end_of_a_shared_weight_alone_is_refused_and_nothing_is_replaced() -> None:
    model = Model()
    with pytest.raises(ArgumentError, match="embed: shares its weight with 'out', which no rule fits"):
        distsam.tensorize(model, {"mix": {"rank": 2}, "embed": {"rank": 2}})
    assert type(model.mix) is nn.Linear
    with pytest.raises(ArgumentError, match="out: shares its weight with 'embed': give both the same"):
        distsam.tensorize(model, {"embed": {"rank": 2}, "out": {"rank": 3}})
    assert type(model.embed) is nn.Embedding


@every_format
def test_the_error_falls_as_the_rank_rises_and_is_the_one_of_the_weights(format: str) -> None:
    errors = []
    for rank in (1, 3, 6):
        model = Model()
        before = model.blocks[0].weight.detach().double()
        [row] = distsam.tensorize(model, {"blocks.0": {"format": format, "rank": rank}})
        after = model.blocks[0].weight.detach().double()
        assert row.relative_error == pytest.approx(float((after - before).norm() / before.norm()), rel=1e-6)
        assert row.parameters_after == sum(core.numel() for core in model.blocks[0].network.cores)
        assert max(row.core_norms) == pytest.approx(min(row.core_norms), rel=1e-5)
        errors.append(row.relative_error)
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("format", ["tt", "tt_matrix", "tucker"])
def test_a_target_error_takes_the_smallest_rank_that_meets_it(format: str) -> None:
    model = Model()
    [row] = distsam.tensorize(copy.deepcopy(model), {"blocks.0": {"format": format, "rank": "error:0.4"}})
    assert row.relative_error <= 0.4
    below = {"blocks.0": {"format": format, "rank": max(row.bonds) - 1}}
    [smaller] = distsam.tensorize(copy.deepcopy(model), below)
    assert smaller.relative_error > 0.4


def test_a_random_start_is_that_of_a_new_layer() -> None:
    model = nn.Sequential(nn.Linear(64, 64))
    with torch.no_grad():
        model[0].weight.fill_(7)
    [row] = distsam.tensorize(model, {"0": {"rank": 4}}, fit=False)
    assert row.relative_error is None
    assert float(model[0].weight.detach().square().mean().sqrt()) == pytest.approx(1 / (3 * 64) ** 0.5, rel=1e-5)


def test_a_padding_row_that_has_been_trained_keeps_its_values() -> None:
    table = nn.Sequential(nn.Embedding(20, 6, padding_idx=2))
    distsam.tensorize(copy.deepcopy(table), {"0": {"rank": "full"}})
    with torch.no_grad():
        table[0].weight[2] = 5.0
    wanted = table(torch.tensor([2])).detach()
    distsam.tensorize(table, {"0": {"rank": "full"}})
    torch.testing.assert_close(table(torch.tensor([2])), wanted, rtol=0, atol=1e-4)


def test_frozen_weights_dtype_and_mode_are_kept() -> None:
    model = nn.Sequential(nn.Linear(8, 8)).double().eval().requires_grad_(False)
    distsam.tensorize(model, {"0": {"rank": 2}})
    assert not model[0].training
    assert {(p.dtype, p.requires_grad) for p in model.parameters()} == {(torch.float64, False)}


BAD: list[tuple[dict[str, Any], str]] = [
    ({"mixx": {}}, "rules.mixx.: fits no layer; there are mix"),
    ({"blocks": {}}, "rules.blocks.: fits only ModuleList; it must fit one of Linear, "),
    ({"mix": {"ranks": 2}}, "rules.mix.: has 'ranks'; use format, rank"),
    ({"mix": 3}, "rules.mix.: is 3; it must be a mapping"),
    ({"mix": {"rank": "error:x"}}, "rules.mix.: rank is 'error:x'; write the relative error as in error:0.1"),
    ({"mix": {"in_shape": [5, 2]}}, r"rules.mix.: in_shape \[5, 2\] has the product 10; it must be 12"),
    ({"mix": {"rank": "error:2"}}, "rules.mix.: rank is 'error:2'; write the relative error as in error:0.1"),
    ({"conv": {"format": "tt_matrix"}}, "rules.conv.: format tt_matrix has no place"),
]


@pytest.mark.parametrize(("rules", "message"), BAD, ids=range(len(BAD)))
def test_what_cannot_be_is_said_in_one_line_and_nothing_is_replaced(rules: dict[str, Any], message: str) -> None:
    model = Model()
    with pytest.raises(ArgumentError, match=message) as caught:
        distsam.tensorize(model, {"blocks.0": {"rank": 2}, **rules})
    assert "\n" not in str(caught.value)
    assert type(model.blocks[0]) is nn.Linear


def test_the_table_prints_a_line_for_each_layer_and_one_for_all() -> None:
    table = distsam.tensorize(Model(), tied({"rank": 3}))
    lines = str(table).splitlines()
    assert [line.split()[0] for line in lines] == ["layer", "embed", "out", "all"]
    assert f"{table.parameters_before:,}" in lines[-1]
    assert "shared" in lines[2]


@pytest.mark.parametrize("format", ["lora", "tucker", "tt"])
def test_an_adapter_starts_at_nothing_learns_alone_merges_and_comes_off(format: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 18), nn.ReLU(), nn.Linear(18, 6)).double()
    x = torch.randn(7, 12, dtype=torch.float64)
    start, frozen = model(x).detach(), copy.deepcopy(model.state_dict())
    names = distsam.add_adapters(model, {"type:Linear": {"format": format, "rank": 3, "alpha": 6}})
    assert names == ["0", "2"]
    assert torch.equal(model(x), start)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained == list(distsam.adapter_state(model))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    learnt = model(x).detach()
    assert not torch.allclose(learnt, start)
    merged = distsam.remove_adapters(copy.deepcopy(model))
    torch.testing.assert_close(merged(x), learnt, rtol=0, atol=1e-12)
    assert [type(merged[0]), type(merged[2])] == [nn.Linear, nn.Linear]
    keys = list(model.state_dict())
    for adapter in (model[0], model[2]):
        adapter.merge()
        adapter.merge()
    assert list(model.state_dict()) == keys
    torch.testing.assert_close(model(x), learnt, rtol=0, atol=1e-12)
    for adapter in (model[0], model[2]):
        adapter.unmerge()
    assert torch.equal(model(x), learnt)
    bare = distsam.remove_adapters(model, merge=False)
    assert all(torch.equal(bare.state_dict()[name], value) for name, value in frozen.items())


@pytest.mark.parametrize("format", ["lora", "tucker", "tt"])
def test_an_adapter_adds_what_its_cores_stand_for_in_values_and_gradients(format: str) -> None:
    layer = nn.Linear(12, 18).double()
    adapter = distsam.TensorizedAdapter(layer, format=format, rank=3, alpha=6)
    torch.manual_seed(0)
    for core in adapter.network.cores:
        nn.init.normal_(core)
    assert adapter.scale == 2
    x = torch.randn(5, 12, dtype=torch.float64)
    dense = x @ (layer.weight + adapter.change).T + layer.bias
    torch.testing.assert_close(adapter(x), dense, rtol=0, atol=1e-10)
    cores = list(adapter.network.cores)
    for got, wanted in zip(
        torch.autograd.grad(adapter(x).square().sum(), cores),
        torch.autograd.grad(dense.square().sum(), cores),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-9)


def test_adapters_that_cannot_be_are_refused_in_one_line() -> None:
    layer: Any = nn.Linear(4, 4)
    for make, message in (
        (lambda: distsam.TensorizedAdapter(nn.ReLU()), "layer: is a ReLU"),  # type: ignore[arg-type]
        (lambda: distsam.TensorizedAdapter(layer, format="cp"), "format: is 'cp'; use one of lora, tucker, tt"),
        (lambda: distsam.TensorizedAdapter(layer, rank=2, dropout=1.0), "dropout: is 1.0"),
        (lambda: distsam.TensorizedAdapter(layer, rank=2, alpha=0.0), "alpha: is 0.0"),
        (lambda: distsam.add_adapters(nn.Sequential(layer), {"1": {}}), "rules.1.: fits no layer"),
    ):
        with pytest.raises(ArgumentError, match=message):
            make()


def test_a_weight_that_no_decomposition_can_take_is_named() -> None:
    for value, problem in ((float("nan"), "weight is not finite"), (0.0, "weight is zero throughout")):
        model = nn.Sequential(nn.Linear(8, 8))
        with torch.no_grad():
            model[0].weight.fill_(value)
        with pytest.raises(ArgumentError, match=f"rules.0.: {problem}"):
            distsam.tensorize(model, {"0": {"rank": 2}})


def test_a_table_that_scales_its_rows_is_refused() -> None:
    model = nn.Sequential(nn.Embedding(8, 8, max_norm=1.0))
    with pytest.raises(ArgumentError, match=r"rules.0.: max_norm is 1.0, which a tensorized table does not have"):
        distsam.tensorize(model, {"0": {"rank": 2}})


def test_the_row_of_padding_counts_for_the_output_layer_that_shares_the_table() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(12, 8, padding_idx=0), nn.Linear(8, 12, bias=False))
    model[0].weight = model[1].weight = nn.Parameter(torch.randn(12, 8))
    distsam.tensorize(model, {"*": {"rank": 2}})
    hidden = torch.randn(5, 8)
    before = model[1](hidden).detach()
    distsam.densify(model)
    assert model[0].weight is model[1].weight
    torch.testing.assert_close(model[1](hidden), before, rtol=1e-5, atol=1e-5)


def test_merging_leaves_what_shares_the_weight_as_it_is() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(12, 8), nn.Linear(8, 12, bias=False))
    model[1].weight = model[0].weight
    distsam.add_adapters(model, {"1": {"rank": 2}})
    with torch.no_grad():
        model[1].network.cores[0].normal_()
    ids = torch.arange(12)
    before, table = model(ids), model[0].weight.clone()
    distsam.remove_adapters(model)
    torch.testing.assert_close(model(ids), before, rtol=1e-5, atol=1e-5)
    assert torch.equal(model[0].weight, table)


def test_a_module_that_reads_the_weight_of_its_layer_sees_the_adapter() -> None:
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(16, 2, 24, dropout=0.0, batch_first=True)
    distsam.add_adapters(block, {"linear1": {"rank": 2}})
    with torch.no_grad():
        block.linear1.network.cores[0].normal_()
    x = torch.randn(2, 3, 16)
    called = block(x).detach()
    with torch.no_grad():  # torch's fused kernel, which calls no module
        torch.testing.assert_close(block.eval()(x), called, rtol=1e-4, atol=1e-5)


def test_adapters_can_be_added_in_two_calls_and_none_inside_another() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    distsam.add_adapters(model, {"0": {"rank": 2}})
    distsam.add_adapters(model, {"1": {"rank": 2}})
    trained = {name.rpartition(".cores")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"0.network", "1.network"}
    with pytest.raises(ArgumentError, match=r"rules.0.layer.: has an adapter already"):
        distsam.add_adapters(model, {"type:Linear": {"rank": 2}})
    plain = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    with pytest.raises(ArgumentError, match=r"rules.1.: rank"):
        distsam.add_adapters(plain, {"0": {"rank": 2}, "1": {"rank": -1}})
    assert all(p.requires_grad for p in plain.parameters())


def test_a_rank_of_lora_above_the_sizes_is_clamped_and_scales_by_what_it_is() -> None:
    with pytest.warns(UserWarning, match="rank 32 is above what the weight can use; it is clamped to 4"):
        adapter = distsam.TensorizedAdapter(nn.Linear(4, 6), rank=32, alpha=16)
    assert adapter.scale == 4
    with pytest.raises(ArgumentError, match=r"out_shape: is \(2, 3\); only tt cuts"):
        distsam.TensorizedAdapter(nn.Linear(4, 6), rank=2, out_shape=(2, 3))


def test_beside_adapters_the_classifying_layer_is_trained_tensorized_or_not() -> None:
    for head in (nn.Linear(6, 4), distsam.TensorizedLinear(6, 4, rank=2)):
        model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), head)
        train_part(model, {"0": {"rank": 2}})
        trained = {name.partition(".")[0] for name, p in model.named_parameters() if p.requires_grad}
        assert trained == {"0", "2"}
        assert not model[0].layer.weight.requires_grad
