"""A network of many tensorized layers on up to 1,024 ranks: memory and messages of one of them, and the plan taken.

    python tests/benchmarks/many_ranks.py [--ranks 8,64,1024] [--plans auto,fsdp] [--memory-gib 2]
        [--bond-ranks 8]

The model: 16 layers of 4,096 -> 4,096, each a train of 16^3 x 16^3 with bonds of 256 (270 million parameters), trained
by SAM around AdamW in float32, with 16 examples a rank. `distsam plan` computes each line, on fake tensors: no rank is
started. MiB of the rank, then MiB of all messages of a step by kind.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

import distsam

NUM_LAYERS, FACTORS, BOND, BATCH = 16, (16, 16, 16), 256, 16
WIDTH = 16**3
MIB = 2**20

CONFIG = """
task: {kind: target, target: "many_ranks:LayersTask"}
optim: {method: sam, base: adamw, lr: 0.001}
train: {steps: 10}
"""


class LayersTask:
    """Reproduce a random vector through all layers."""

    goal = distsam.Goal("train/loss", higher_is_better=False, columns=("loss",))

    def __init__(self, context: Any) -> None:
        self._context = context

    def build_model(self) -> nn.Module:
        """The layers, one after the other."""
        torch.manual_seed(0)

        def layer() -> nn.Module:
            return distsam.TensorizedLinear(
                WIDTH, WIDTH, bias=False, format="tt_matrix", rank=BOND, in_shape=FACTORS, out_shape=FACTORS
            )

        return nn.Sequential(*(layer() for _ in range(NUM_LAYERS)))

    def microbatches(self, step: int, count: int) -> list[Tensor]:
        """Of this rank."""
        generator = torch.Generator().manual_seed(1000 * step + self._context.data_rank)
        return [torch.randn(BATCH // count, WIDTH, generator=generator) for _ in range(count)]

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        """Mean squared error."""
        loss: Tensor = (model(batch) - batch).square().mean()
        return loss

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Not looked at."""
        return {"train/loss": 0.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", default="8,64,1024")
    parser.add_argument("--plans", default="auto,fsdp")
    parser.add_argument("--memory-gib", type=float, default=2.0)
    parser.add_argument("--bond-ranks", type=int, default=8, help="of plans that name bond; auto chooses")
    given = parser.parse_args()
    from distsam.train.config_file import load_config
    from distsam.train.dry_run import dry_run

    sys.path.insert(0, str(Path(__file__).parent))
    kinds = ("all_gather", "reduce_scatter", "all_reduce")
    print(f"{'ranks':>6}  {'plan':<40}{'peak':>8}{'held':>8}" + "".join(f"{kind:>16}" for kind in kinds), flush=True)
    with TemporaryDirectory() as folder:
        config = Path(folder) / "layers.yaml"
        config.write_text(CONFIG)
        for num_ranks in map(int, given.ranks.split(",")):
            for plan in given.plans.split(","):
                overrides = [f"sharding.plan={plan}", f"sharding.memory_gib={given.memory_gib}"]
                if plan != "auto":
                    overrides.append("sharding.fits=ignore")
                if "bond" in plan:
                    overrides.append(f"sharding.bond_ranks={given.bond_ranks}")
                found = dry_run(load_config(config, overrides), num_ranks)
                sent = Counter[str]()
                for call in found.collectives:
                    sent[call.kind] += call.message_bytes
                figures = (found.peak, found.memory.total, *(sent[kind] for kind in kinds))
                widths = (8, 8, 16, 16, 16)
                cells = "".join(f"{n / MIB:>{width},.0f}" for n, width in zip(figures, widths, strict=True))
                print(f"{num_ranks:>6}  {f'{plan}: {found.plan.name} on {found.plan.mesh}':<40}{cells}", flush=True)
                for reason in found.reasons:
                    print(f"        {reason}", flush=True)


if __name__ == "__main__":
    main()
