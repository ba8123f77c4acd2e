"""Tensorized models in files, and networks of other packages: there and back without a bit lost."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_tensorize import IDS, Model, tied
from torch import nn

import distsam
from distsam.errors import InputError

RULES = {**tied({"rank": 3}), "mix": {"format": "tr", "rank": 2}, "conv": {"format": "cp"}, "blocks.*": {"rank": 2}}


def test_a_file_gives_the_dense_architecture_its_networks_with_what_is_shared(tmp_path: Path) -> None:
    model = Model().eval()
    distsam.tensorize(model, RULES)
    distsam.save_tensorized(model, tmp_path / "model.safetensors")
    fresh = Model().eval()
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.zero_()
    loaded = distsam.load_tensorized(fresh, tmp_path / "model.safetensors")
    assert loaded is fresh
    assert torch.equal(loaded(IDS), model(IDS))
    assert loaded.embed.network is loaded.out.network
    assert loaded.mix is loaded.again
    assert list(loaded.state_dict()) == list(model.state_dict())


def test_a_file_of_another_model_is_refused_by_its_first_name(tmp_path: Path) -> None:
    model = Model()
    distsam.tensorize(model, {"blocks.0": {"rank": 2}})
    path = tmp_path / "model.safetensors"
    distsam.save_tensorized(model, path)
    with pytest.raises(InputError, match=r"has a network for 'blocks.0'; there is no such layer"):
        distsam.load_tensorized(nn.Sequential(nn.Linear(2, 2)), path)
    other = Model()
    other.more = nn.Linear(2, 2)
    with pytest.raises(InputError, match=r"more.weight is not in the file"):
        distsam.load_tensorized(other, path)
    save_file({"x": torch.zeros(2)}, str(path))
    with pytest.raises(InputError, match="says nothing of tensorized layers"):
        distsam.load_tensorized(Model(), path)
    path.write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        distsam.load_tensorized(Model(), path)


def test_torch_export_takes_a_tensorized_model() -> None:
    model = Model().eval()
    distsam.tensorize(model, RULES)
    exported = torch.export.export(model, (IDS,)).module()
    torch.testing.assert_close(exported(IDS), model(IDS), rtol=0, atol=1e-6)


def test_quimb_contracts_a_network_to_its_tensor_and_back() -> None:
    quimb = pytest.importorskip("quimb.tensor")
    assert quimb
    for spec in (distsam.tt((4, 3, 5), 2), distsam.tr((4, 3, 5), 2), distsam.tucker((4, 3, 5), (2, 2, 2))):
        network = distsam.TensorNetwork(spec, dtype=torch.float64)
        theirs = distsam.to_quimb(network)
        dense = theirs.contract(output_inds=spec.modes).data
        torch.testing.assert_close(torch.from_numpy(dense), network.dense().detach(), rtol=0, atol=1e-12)
        again = distsam.from_quimb(theirs, spec.modes)
        torch.testing.assert_close(again.dense(), network.dense(), rtol=0, atol=1e-12)


def test_onnx_holds_the_densified_model_for_any_batch(tmp_path: Path) -> None:
    from onnx.reference import ReferenceEvaluator

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 5))
    distsam.tensorize(model, {"*": {"rank": 3}})
    distsam.save_onnx(model, tmp_path / "model.onnx", (torch.randn(2, 12),))
    assert type(model[0]) is distsam.TensorizedLinear
    program = ReferenceEvaluator(str(tmp_path / "model.onnx"))
    for batch in (1, 7):
        x = torch.randn(batch, 12)
        [found] = program.run(None, {program.input_names[0]: x.numpy()})
        # Two sums of products in float32, in any order.
        torch.testing.assert_close(torch.from_numpy(found), model(x).detach(), rtol=1e-5, atol=1e-6)


def test_a_trained_row_of_padding_survives_the_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(12, 8, padding_idx=0))
    with torch.no_grad():
        model[0].weight.normal_()
    distsam.tensorize(model, {"0": {"rank": "full"}})
    distsam.save_tensorized(model, tmp_path / "model.safetensors")
    loaded = distsam.load_tensorized(nn.Sequential(nn.Embedding(12, 8, padding_idx=0)), tmp_path / "model.safetensors")
    ids = torch.arange(12)
    assert torch.equal(loaded(ids), model(ids))
    assert bool(loaded(ids)[0].any())


def test_a_buffer_that_the_model_makes_anew_may_stand_in_the_file(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(6, 6))
    distsam.tensorize(model, {"0": {"rank": 2}})
    model.register_buffer("positions", torch.arange(4))
    distsam.save_tensorized(model, tmp_path / "model.safetensors")
    fresh = nn.Sequential(nn.Linear(6, 6))
    fresh.register_buffer("positions", torch.arange(4), persistent=False)
    x = torch.randn(2, 6)
    assert torch.equal(distsam.load_tensorized(fresh, tmp_path / "model.safetensors")(x), model(x))
