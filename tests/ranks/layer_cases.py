"""What runs on every rank: a residual network with tensor rings, trained by SAM on a slice of the same images."""

from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import distsam
from distsam.engine import NativeEngine
from distsam.sharding import make_layout
from distsam.sharding.collectives import rank, world_size
from distsam.tasks.models import resnet

NUM_IMAGES, STEPS = 16, 20


def model_of(norm: str) -> nn.Module:
    """ResNet-20 whose convolutions but the first are tensor rings, in float64."""
    torch.manual_seed(0)
    model = resnet((1, 8, 8), 10, 20, 8, norm).double()
    distsam.tensorize(model, {"*.conv*": {"format": "tr", "rank": 3}}, fit=False)
    return model


def train_resnet(plan: str, norm: str) -> dict[str, Any]:
    """20 SAM steps; alone where there is no process group, then with two micro-batches for the two ranks."""
    from rank_cases import plan_of, this_world

    alone = not torch.distributed.is_initialized()
    model = model_of(norm)
    if not alone:
        distsam.shard(model, make_layout(this_world(), plan_of(plan)).mesh, plan)
    optimizer = distsam.SAM(torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), rho=0.05)
    engine = NativeEngine(model, optimizer)
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(NUM_IMAGES, 1, 8, 8, generator=generator, dtype=torch.float64)
    classes = torch.arange(NUM_IMAGES) % 10
    half = NUM_IMAGES // 2
    halves = [slice(0, half), slice(half, NUM_IMAGES)]
    mine = halves if alone else [halves[rank()]]
    assert alone or world_size() == 2
    losses = []
    for _ in range(STEPS):

        def loss_of(part: slice) -> Any:
            return lambda: cross_entropy(model(images[part]), classes[part])

        losses.append(engine.step([loss_of(part) for part in mine]))
    weights = {
        name: (value.full_tensor() if hasattr(value, "full_tensor") else value).detach().clone().numpy()
        for name, value in model.named_parameters()
    }
    return {"weights": weights, "networks": [network.name for network in distsam.core_networks(model)]}
