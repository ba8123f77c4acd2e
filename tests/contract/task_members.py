"""The tasks that the contract is held against; a new one joins TASKS by one line."""

from collections.abc import Callable
from threading import Barrier, Thread
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import distsam
from distsam import Goal, TaskContext
from distsam.tasks.classification import ClassificationTask
from distsam.tasks.completion import CompletionTask
from distsam.tasks.entries import entries_from_dense
from distsam.tasks.labelled import HELDOUT, TRAIN, VALIDATION, labelled
from distsam.tasks.metrics import FitMetric
from distsam.tasks.sampler import Sampler, nth_part
from distsam.tasks.split import split_entries
from distsam.tasks.task import Task

# shift: added to the data, so that a task can be asked for other data; batch_size: None is the full batch.
Make = Callable[..., Task]
SHAPE = (7, 6, 5)


def completion(context: TaskContext, batch_size: int | None = None, shift: float = 0.0, loss: str = "mean") -> Task:
    entries = entries_from_dense(np.random.default_rng(3).normal(size=SHAPE) + shift)
    split = split_entries(entries, observed=0.6, validation=0.2)
    return CompletionTask(context, entries, split, distsam.tucker(SHAPE, (2, 3, 2)), batch_size=batch_size, loss=loss)


def completion_of_sums(context: TaskContext, batch_size: int | None = None, shift: float = 0.0) -> Task:
    return completion(context, batch_size, shift, "sum")


class ThreeNetworks(nn.Module):
    """Three networks of other formats, their answers weighed by a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        specs = distsam.cp(SHAPE, 2), distsam.tt(SHAPE, 2), distsam.tr(SHAPE, 2)
        self.networks = nn.ModuleList(distsam.TensorNetwork(spec) for spec in specs)
        self.weigh = nn.Linear(3, 1)

    def forward(self, indices: Tensor) -> Tensor:
        answer: Tensor = self.weigh(torch.stack([network(indices) for network in self.networks], 1))
        return answer.squeeze(1)


class UsersTask:
    """As a user would write it: the protocol's members, no base class of ours."""

    goal = Goal("validation/rmse", higher_is_better=False, columns=("rmse", "mae"))

    def __init__(self, context: TaskContext, batch_size: int | None = None, shift: float = 0.0) -> None:
        self.context = context
        rng = np.random.default_rng(4)
        self.indices = rng.permutation(np.argwhere(np.ones(SHAPE)))
        self.values = np.cos(self.indices.sum(1)) + shift
        self.sampler = Sampler(101, batch_size, context)

    def build_model(self) -> nn.Module:
        torch.manual_seed(self.context.seed)
        return ThreeNetworks().to(self.context.device, self.context.dtype)

    def microbatches(self, step: int, count: int) -> list[Any]:
        return [(*self._load(own), self.sampler.mean_factor(count)) for own in self.sampler.pieces(step, count)]

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        indices, values, factor = batch
        loss: Tensor = (model(indices) - values).abs().sum() * factor
        return loss

    def evaluate(self, model: nn.Module) -> dict[str, float | None]:
        context = self.context
        metric = FitMetric(0.0, context.sum_over_ranks, context.device)
        indices, values = self._load(nth_part(np.arange(101, 210), context.data_rank, context.data_size))
        metric.update(model(indices), values)
        scores = metric.compute()
        return {f"validation/{column}": scores[column] for column in self.goal.columns}

    def identity(self) -> str:
        return str(self.values.sum())

    def _load(self, positions: np.ndarray) -> tuple[Tensor, Tensor]:
        values = torch.from_numpy(self.values[positions]).to(self.context.dtype)
        return torch.from_numpy(self.indices[positions]), values


def classification(context: TaskContext, batch_size: int | None = None, shift: float = 0.0) -> Task:
    """101 training examples of seven classes, of which a multilayer perceptron with tensorized layers learns."""
    rng = np.random.default_rng(6)
    inputs = rng.normal(size=(141, 12)) + shift
    examples = labelled(inputs, np.arange(141) % 7, "contract")
    part = np.repeat([TRAIN, VALIDATION, HELDOUT], [101, 20, 20])

    def make_model(shape: tuple[int, ...], num_classes: int) -> nn.Module:
        hidden = distsam.TensorizedLinear(12, 16, rank=2)
        return nn.Sequential(hidden, nn.ReLU(), nn.Linear(16, num_classes))

    return ClassificationTask(context, examples, part, make_model, batch_size=batch_size, label_noise=0.1)


TASKS: dict[str, Make] = {
    "classification": classification,
    "completion": completion,
    "completion of sums": completion_of_sums,
    "a user's task": UsersTask,
}


def context_of(rank: int = 0, size: int = 1, seed: int = 5, **more: Any) -> TaskContext:
    return TaskContext(seed=seed, data_rank=rank, data_size=size, dtype=torch.float64, **more)


def on_every_rank(size: int, work: Callable[[TaskContext], Any]) -> list[Any]:
    """What `work` gives on each of `size` data ranks, which are threads here: sums meet at a barrier."""
    barrier, parts, results = Barrier(size, timeout=30), [torch.empty(0)] * size, [None] * size

    def run(rank: int) -> None:
        def sum_over_ranks(tensor: Tensor) -> Tensor:
            parts[rank] = tensor
            barrier.wait()
            total = torch.stack(parts).sum(0)
            barrier.wait()
            return total

        results[rank] = work(context_of(rank, size, sum_over_ranks=sum_over_ranks))

    threads = [Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
