"""What runs on every rank: two networks of 21 MB each, and the memory that they take at the start and in a step."""

import torch
from plan_cases import METHODS, PLANS, layout_of
from torch import Tensor, nn

import distsam
from distsam.sharding import Layout, place_model
from distsam.tensornet import deferred_draws
from distsam.train.ledger import Ledger

SHAPE, BOND, BATCH = (1024, 16, 1024), 512, 16
NUM_NETWORKS = 2


class Large(nn.Module):
    """The sum of two trains of three cores, of which the middle one has 4.2 million elements."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.networks = nn.ModuleList(
            distsam.TensorNetwork(distsam.tt(SHAPE, (BOND, BOND - 4 * k)), generator=generator)
            for k in range(NUM_NETWORKS)
        )

    def forward(self, indices: Tensor) -> Tensor:
        return torch.stack([network.at(indices) for network in self.networks]).sum(0)


def largest_network_bytes() -> int:
    return 4 * max(network.spec.num_parameters for network in model_without_memory().networks)


def total_bytes() -> int:
    return 4 * sum(p.numel() for p in model_without_memory().parameters())


def model_without_memory() -> Large:
    with deferred_draws():
        return Large()


def alive(ledger: Ledger) -> int:
    """Bytes that are there now."""
    ledger.begin()
    return ledger.most()[1]


def measure_memory(plan: str) -> dict[str, int]:
    """Bytes allocated by torch on this rank: at most while the model is built and placed, and during a step of SAM
    around DAS and AdamW; and what is there after each."""
    ledger = Ledger()
    with ledger.watching():
        model = model_without_memory()
        layout = Layout.alone()
        if torch.distributed.is_initialized():
            layout = layout_of(plan)
            distsam.shard(model, layout.mesh, place_model(PLANS[plan](), model, layout.axes))
        else:
            distsam.shard(model, None)
        found = {"start_peak": ledger.most()[1], "start": alive(ledger)}
        optimizer = METHODS["sam+das"](model)
        generator = torch.Generator().manual_seed(layout.data_rank)
        indices = torch.stack([torch.randint(n, (BATCH,), generator=generator) for n in SHAPE], 1)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = (model(indices) - 1).square().sum()
            loss.backward()
            return loss

        for _ in range(2):
            optimizer.step(closure)
        ledger.begin()
        optimizer.step(closure)
        found |= {"step_peak": ledger.most()[1]}
        optimizer.zero_grad()
        found |= {"kept": alive(ledger)}
    return found
