"""`distsam compress`: a saved model's weights become tensor networks, and any mistake is one line."""

import json
from pathlib import Path

import pytest
import torch
from command_line import invoke
from safetensors.torch import load_file, save_file, save_model
from torch import nn

import distsam


class Network(nn.Module):
    """What somebody has trained."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 16)
        self.blocks = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))
        self.norm = nn.LayerNorm(16)
        self.conv = nn.Conv1d(16, 8, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = x + block(x).relu()
        result: torch.Tensor = self.conv(self.norm(x).transpose(1, 2))
        return result


@pytest.fixture
def model(tmp_path: Path) -> Network:
    torch.manual_seed(0)
    made = Network().eval()
    (tmp_path / "model").mkdir()
    save_model(made, str(tmp_path / "model" / "model.safetensors"))
    (tmp_path / "model" / "config.json").write_text("{}")
    return made


IDS = torch.tensor([[0, 5, 39, 7, 7]])


def test_full_bonds_give_the_model_back_and_few_parameters_another(model: Network, tmp_path: Path) -> None:
    whole = invoke("compress", tmp_path / "model", "-o", tmp_path / "full", "--layers", "*", "--rank", "full")
    assert whole.exit_code == 0, whole.output
    assert {line.split()[0] for line in whole.output.splitlines()[1:5]} == {"embed", "blocks.0", "blocks.1", "conv"}
    loaded = distsam.load_tensorized(Network().eval(), tmp_path / "full" / "model.safetensors")
    torch.testing.assert_close(loaded(IDS), model(IDS), rtol=0, atol=1e-4)
    assert (tmp_path / "full" / "config.json").read_text() == "{}"
    small = invoke(
        "compress", tmp_path / "model", "-o", tmp_path / "small", "--layers", "blocks.*", "--rank", "ratio:4"
    )
    assert small.exit_code == 0, small.output
    rows = json.loads((tmp_path / "small" / "compression.json").read_text())
    assert [row["name"] for row in rows] == ["blocks.0", "blocks.1"]
    assert all(row["parameters_after"] <= 16 * 16 / 4 for row in rows)
    assert len(distsam.core_networks(distsam.load_tensorized(Network(), tmp_path / "small" / "model.safetensors"))) == 2


def test_dense_files_have_the_old_names_and_the_compressed_weights(model: Network, tmp_path: Path) -> None:
    for name, more in (("cores", []), ("dense", ["--dense"])):
        output = ["-o", tmp_path / name, "--layers", "blocks.0", "--rank", "2", *more]
        assert invoke("compress", tmp_path / "model", *output).exit_code == 0
    dense = load_file(str(tmp_path / "dense" / "model.safetensors"))
    assert {name: tuple(value.shape) for name, value in dense.items()} == {
        name: tuple(value.shape) for name, value in model.state_dict().items()
    }
    cores = distsam.load_tensorized(Network(), tmp_path / "cores" / "model.safetensors")
    torch.testing.assert_close(dense["blocks.0.weight"], cores.blocks[0].weight.detach(), rtol=0, atol=1e-6)
    assert torch.equal(dense["blocks.1.weight"], model.state_dict()["blocks.1.weight"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model", "-o", "out"], "--layers: give patterns of module names"),
        (["nix", "-o", "out", "--layers", "*"], "nix: no such file"),
        (["model", "-o", "model", "--layers", "*"], "model is there already; give a new folder"),
        (["model", "-o", "out", "--layers", "block"], "rules[block]: fits no layer; there are blocks."),
        (["model", "-o", "out", "--layers", "*", "--rank", "many"], "rules[blocks.0]: rank is 'many'; use a number"),
        (["model", "-o", "out", "--layers", "*", "--format", "mps"], "rules[blocks.0]: format is 'mps'; use one of"),
    ],
)
def test_what_cannot_be_is_one_line_and_nothing_is_written(
    model: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = invoke("compress", *arguments)
    assert done.exit_code == 2
    assert message in done.output
    assert done.output.strip().count("\n") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_no_tensor_of_the_file_is_lost_whatever_their_names(tmp_path: Path) -> None:
    sizes = {
        "q.weight": (8, 8),
        "q.lora_A.default.weight": (2, 8),
        "a": (3,),
        "a.weight": (8, 4),
        "type.weight": (8, 8),
    }
    (tmp_path / "model").mkdir()
    tensors = {name: torch.randn(size) for name, size in sizes.items()}
    save_file(tensors, tmp_path / "model" / "model.safetensors")
    done = invoke("compress", tmp_path / "model", "-o", tmp_path / "out", "--layers", "q", "--rank", "2", "--dense")
    assert done.exit_code == 0, done.output
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in written.items()} == sizes
    assert all(torch.equal(written[name], tensors[name]) for name in sizes if name != "q.weight")
