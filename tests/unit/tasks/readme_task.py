"""ratings.py: users x items at a time of day; two networks and a linear layer that weighs them."""

import numpy as np
import torch
from torch import nn

import distsam
from distsam.tasks.metrics import FitMetric
from distsam.tasks.sampler import Sampler, nth_part


class Ratings(nn.Module):
    def __init__(self, shape, bond_dim, seed):
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.short = distsam.TensorNetwork(distsam.cp(shape, bond_dim), generator=draw)
        self.long = distsam.TensorNetwork(distsam.tt(shape, bond_dim), generator=draw)
        self.weigh = nn.Linear(2, 1)
        nn.init.constant_(self.weigh.weight, 0.5)  # the same start on every rank
        nn.init.zeros_(self.weigh.bias)

    def forward(self, indices):
        both = torch.stack([self.short(indices), self.long(indices)], dim=1)
        return self.weigh(both).squeeze(1)


class RatingTask:
    goal = distsam.Goal("validation/r2", higher_is_better=True, columns=("r2", "rmse"))

    def __init__(self, context, shape, bond_dim=3, batch_size=None):
        self.context, self.shape, self.bond_dim = context, tuple(shape), bond_dim
        positions = np.indices(self.shape).reshape(len(self.shape), -1).T  # your data here
        self.indices = torch.tensor(np.random.default_rng(0).permutation(positions))
        self.values = torch.sin(self.indices.double().sum(1)).to(context.dtype)
        self.parts = dict(zip(("train", "validation"), np.split(np.arange(len(positions)), [len(positions) * 4 // 5])))
        self.sampler = Sampler(len(self.parts["train"]), batch_size, context)

    def build_model(self):
        return Ratings(self.shape, self.bond_dim, self.context.seed).to(self.context.device, self.context.dtype)

    def microbatches(self, step, count):  # this rank's share of the step's batch, in `count` pieces
        factor = self.sampler.mean_factor(count)
        return [(*self.load(piece), factor) for piece in self.sampler.pieces(step, count)]

    def loss(self, model, batch):
        indices, values, factor = batch
        return (model(indices) - values).square().sum() * factor

    def evaluate(self, model):
        return {f"{part}/{k}": v for part in self.parts for k, v in self.score(model, self.parts[part]).items()}

    def score(self, model, positions):
        context = self.context
        indices, values = self.load(nth_part(positions, context.data_rank, context.data_size))
        metric = FitMetric(0.0, context.sum_over_ranks, context.device)
        metric.update(model(indices), values)
        return {name: metric.compute()[name] for name in self.goal.columns}

    def load(self, positions):
        return self.indices[positions].to(self.context.device), self.values[positions].to(self.context.device)
