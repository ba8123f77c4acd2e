"""Adapters on a frozen transformer, trained on sentences: what is trained, sharded and saved, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from command_line import assert_one_run_however_it_is_cut, invoke
from safetensors.torch import load_file, save_file
from small_encoder import save_encoder, write_texts

from distsam.runs.checkpoints import finished_checkpoints
from distsam.tasks.pretrained import PADDING, SentenceClassifier, read_sentences
from distsam.train.checkpoint_reader import tensor_shapes

# One layer's query and value, in two formats, and the classifying layer.
CONFIG = """
task: {kind: classification}
data: {source: text, path: texts.csv, tokenizer: "${model.path}", max_length: 12}
model:
  kind: pretrained
  path: bert
  adapters:
    "encoder.encoder.layer.0.attention.self.query": {format: lora, rank: 2}
    "encoder.encoder.layer.0.attention.self.value": {format: tt, rank: 2}
optim: {method: sam+das, base: adam, lr: 0.02, alpha: 0.01, rho: 0.05}
train: {steps: 40, batch_size: 32, log_every: 10, checkpoint_every: 20, num_threads: 1, precision: float64}
"""
ADAPTERS = [f"encoder.encoder.layer.0.attention.self.{name}.network" for name in ("query", "value")]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sentences whose label is whether they say "good"."""
    monkeypatch.chdir(tmp_path)
    save_encoder(Path("bert"))
    write_texts(Path("texts.csv"))
    path = tmp_path / "sentences.yaml"
    path.write_text(CONFIG)
    return path


def saved_names(folder: str) -> set[str]:
    newest = finished_checkpoints(Path(folder, "checkpoints"))[-1]
    return {name.removeprefix("model.") for name in tensor_shapes(newest) if name.startswith("model.")}


def test_adapters_learn_and_they_alone_are_trained_and_saved(config: Path) -> None:
    done = invoke("train", config, "run.dir=run", "train.steps=100")
    assert done.exit_code == 0, done.output
    assert "2 classes (no, yes) of inputs of 8" in done.output
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["last/heldout/accuracy"] > 0.9
    assert list(summary["networks"]) == ADAPTERS
    assert summary[f"balance/{ADAPTERS[0]}/norm_deviation"] > 0
    cores = {f"{ADAPTERS[0]}.cores.{k}" for k in range(2)}
    others = {name for name in saved_names("run") if not name.startswith(f"{ADAPTERS[1]}.cores.")}
    assert others == {*cores, "head.weight", "head.bias"}
    assert invoke("export", "run", "-o", "weights.pt").exit_code == 0
    assert set(torch.load("weights.pt")) == saved_names("run")


def test_a_run_in_two_parts_and_on_two_ranks_is_the_same_run(config: Path) -> None:
    assert_one_run_however_it_is_cut(config)


def test_what_fills_up_a_sentence_changes_nothing(config: Path) -> None:
    model = SentenceClassifier("bert", 2).eval()
    short = torch.tensor([[5, 3, 0, 7]])  # 0 is a word like others: padding has no id
    filled = torch.cat([short, torch.full((1, 3), PADDING)], 1)
    torch.testing.assert_close(model(filled), model(short), rtol=1e-5, atol=1e-6)
    other = torch.tensor([[5, 3, 1, 7]])
    assert not torch.allclose(model(other), model(short))
    assert (read_sentences("texts.csv", "text", "label", "bert", 12).inputs == PADDING).any()


def test_other_frozen_weights_are_refused_and_moved_ones_found(config: Path) -> None:
    assert invoke("train", config, "run.dir=run", "train.steps=20").exit_code == 0
    scores = invoke("evaluate", "run").output
    shutil.move("bert", "elsewhere")
    gone = invoke("evaluate", "run")
    assert gone.exit_code == 2
    assert "says where it lies now" in gone.stderr
    moved = ("data.tokenizer=elsewhere", "model.path=elsewhere")
    assert invoke("evaluate", "run", *moved).output == scores
    save_encoder(Path("bert"), seed=1)
    other = invoke("evaluate", "run")
    assert other.exit_code == 2
    assert "the model's frozen weights are not those that it was trained with" in other.stderr
    resumed = invoke("train", config, "run.dir=run", "train.resume=auto")
    assert resumed.exit_code == 2
    assert "a checkpoint of a model with other frozen weights" in resumed.output


def test_a_compressed_encoder_is_read_and_one_without_its_weights_is_not(config: Path) -> None:
    rule = ("--layers", "encoder.layer.*.dense", "--rank", "3")
    assert invoke("compress", "bert", "-o", "small", *rule).exit_code == 0
    done = invoke("train", config, "run.dir=run", "train.steps=20", "model.path=small", "data.tokenizer=bert")
    assert done.exit_code == 0, done.output
    # Frozen cores come of a decomposition: they are saved.
    assert "encoder.encoder.layer.0.output.dense.network.cores.0" in saved_names("run")
    assert invoke("evaluate", "run").exit_code == 0
    weights = load_file("bert/model.safetensors")
    save_file({name: w for name, w in weights.items() if "layer.1" not in name}, "bert/model.safetensors")
    done = invoke("train", config, "run.dir=other")
    assert done.exit_code == 2
    assert "has no weights for encoder.layer.1.attention.output" in done.output


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.path=nowhere"], "no such folder"),
        (["data.label=mood"], "data.label: 'mood' is no column of"),
        (["model.adapters={encoder.*.querry: {rank: 2}}"], "model.adapters[encoder.*.querry]: fits no layer"),
        (["model.trained=[heed.*]"], "model.trained: 'heed.*' fits no parameter; there are head."),
        (["model.trained=[]", "model.adapters=null"], "model.trained: is []"),
        (["data.max_length=1"], "data.max_length"),
        (
            ["model.kind=mlp", "model.path=null", "data.tokenizer=bert", "model.adapters=null"],
            "model.kind: does not take",
        ),
        (["model.adapters=null", "model.trained=[head.*]"], "optim.method: das acts on tensor networks"),
    ],
)
def test_what_cannot_be_is_one_line_and_exit_code_2(config: Path, overrides: list[str], message: str) -> None:
    done = invoke("train", config, "run.dir=run", *overrides)
    assert done.exit_code == 2
    assert message in done.output
    assert done.output.strip().count("\n") == 0
    assert not Path("run").exists()
