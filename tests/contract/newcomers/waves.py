"""A new task: values along a line that a tensor train with a bias fits."""

import torch
from torch import Tensor, nn

import distsam
from distsam.train.parts import TASKS
from distsam.train.seams import Field, Section, TaskPart


class WavesKeys(Section):
    bond_dim: int = Field(default=2, ge=1, description="Size of the bonds.")


class Model(nn.Module):
    def __init__(self, bond_dim: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.train_of_cores = distsam.TensorNetwork(distsam.tt((4, 4, 4), bond_dim), generator=generator)
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, indices: Tensor) -> Tensor:
        return self.train_of_cores(indices) + self.bias


class Waves:
    goal = distsam.Goal("validation/mse", higher_is_better=False, columns=("mse",))

    def __init__(self, config: object, context: distsam.TaskContext) -> None:
        self.context = context
        self.bond_dim: int = config.task.bond_dim  # type: ignore[attr-defined]
        self.indices = torch.cartesian_prod(*[torch.arange(4)] * 3)
        self.values = torch.sin(self.indices.sum(1).double()).to(context.dtype)

    def build_model(self) -> Model:
        return Model(self.bond_dim, self.context.seed).to(self.context.dtype)

    def microbatches(self, step: int, count: int) -> list[Tensor]:
        order = torch.randperm(64, generator=torch.Generator().manual_seed(step))
        own = order[self.context.data_rank :: self.context.data_size]
        return list(own.chunk(count))

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        return (model(self.indices[batch]) - self.values[batch]).square().mean()

    def evaluate(self, model: nn.Module) -> dict[str, float | None]:
        return {"validation/mse": float((model(self.indices) - self.values).square().mean())}


TASKS.add(TaskPart("waves", WavesKeys, Waves))
