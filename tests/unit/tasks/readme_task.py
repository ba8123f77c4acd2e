import numpy as np
import torch
from torch import nn

import distsam
from distsam.tasks.metrics import FitMetric
from distsam.tasks.sampler import Sampler, nth_part


class Ratings(nn.Module):
    def __init__(self, shape, bond_dim):
        super().__init__()
        self.wide = distsam.TensorNetwork(distsam.cp(shape, bond_dim))
        self.chain = distsam.TensorNetwork(distsam.tt(shape, bond_dim))
        self.weigh = nn.Linear(2, 1)

    def forward(self, indices):
        both = torch.stack([self.wide(indices), self.chain(indices)], dim=1)
        return self.weigh(both).sum(dim=1)  # of one column; squeeze would give a view, of which FSDP2 warns


class RatingTask:  # task.target: ratings:RatingTask makes RatingTask(context, **task.arguments)
    goal = distsam.Goal("validation/r2", higher_is_better=True, columns=("r2", "rmse"))

    def __init__(self, context, shape=(12, 10, 8), bond_dim=3, batch_size=None):
        self.context, self.shape, self.bond_dim = context, tuple(shape), bond_dim
        indices = np.random.default_rng(0).permutation(np.argwhere(np.ones(shape)))  # here: your data
        self.indices = torch.tensor(indices, device=context.device)
        self.values = torch.sin(self.indices.sum(dim=1)).to(context.dtype)
        self.num_train = len(indices) * 4 // 5
        self.sampler = Sampler(self.num_train, batch_size, context)

    def build_model(self):
        torch.manual_seed(self.context.seed)  # the same start on every rank
        return Ratings(self.shape, self.bond_dim).to(self.context.device, self.context.dtype)

    def microbatches(self, step, count):  # this rank's part of the step's batch, in `count` pieces
        factor = self.sampler.mean_factor(count)
        return [(self.indices[own], self.values[own], factor) for own in self.sampler.pieces(step, count)]

    def loss(self, model, batch):  # the factor makes the mean over pieces and ranks the mean over the batch
        indices, values, factor = batch
        return (model(indices) - values).square().sum() * factor

    def evaluate(self, model):
        own = nth_part(np.arange(self.num_train, len(self.values)), self.context.data_rank, self.context.data_size)
        metric = FitMetric(0.0, self.context.sum_over_ranks, self.context.device)
        metric.update(model(self.indices[own]), self.values[own])
        return {f"validation/{name}": value for name, value in metric.compute().items()}
