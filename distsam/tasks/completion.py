"""Learn the entries of a tensor that are missing from those that are known."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from distsam.errors import InputError
from distsam.tasks.entries import Entries, check_indices
from distsam.tasks.metrics import SCORES, FitMetric
from distsam.tasks.sampler import batch_positions, rank_slice
from distsam.tasks.split import Split

# Entries predicted at a time: bounds the (entries, bond) intermediates of the model, not the result.
_CHUNK = 2**18
# Below this many entries a full tensor is contracted at once, which is far faster than entry by entry.
_DENSE_LIMIT = 2**26
# A spread this small beside the mean is rounding of a constant.
_ROUNDING = 8 * float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Scaling:
    """The affine map between values as given and values as learnt: given = mean + std * learnt; std > 0."""

    mean: float
    std: float


class CompletionTask:
    """Loss, metrics and predictions of tensor completion, for one rank of many.

    A model is called as `model(indices)` with (B, order) int64 and gives (B,) values as learnt. A sharded
    model may run collectives in there, so every method makes equally many calls on every rank.

    Args:
        entries: all known entries, the same on every rank.
        split: positions into `entries`, the same on every rank.
        batch_size: entries in the global batch of a step; None takes all training entries in every step.
        loss: `mean` or `sum` of squared errors over the global batch, on the scale as learnt.
        standardise: learn values of mean 0 and standard deviation 1, measured on the training entries alone.
        seed: of the minibatches.
        rank, world_size: this process and their number; global batch and metrics are divided over them.
        device, dtype: where the model computes, and in what.

    Attributes:
        scaling: `Scaling` fitted on the training entries; mean 0, std 1 without `standardise`.
        target_std: standard deviation of the training values as learnt, 1 where they are constant: what the
            entries of a fresh network should have.

    Raises:
        InputError: `loss` unknown, or `batch_size` not between 1 and the number of training entries.
    """

    def __init__(
        self,
        entries: Entries,
        split: Split,
        *,
        batch_size: int | None = None,
        loss: str = "mean",
        standardise: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        _check_arguments(loss, batch_size, len(split.train))
        self.entries, self.split = entries, split
        validation = entries.values[split.validation]
        # Of no value, or of equal ones, R2 is undefined: there is nothing to choose weights by.
        self.has_validation_r2 = validation.size > 0 and bool(validation.min() < validation.max())
        self.batch_size = batch_size
        self.seed = seed
        self.rank, self.world_size = rank, world_size
        self.device, self.dtype = torch.device(device), dtype
        mean, std = _spread(entries.values[split.train])
        self.scaling = Scaling(mean, std) if standardise else Scaling(0.0, 1.0)
        self.target_std = std / self.scaling.std
        # Gradients are averaged over ranks, not summed: the average of the local losses is the global loss.
        self._loss_factor = world_size / ((batch_size or len(split.train)) if loss == "mean" else 1)
        self._batch: tuple[int, Tensor, Tensor] | None = None

    def loss(self, model: nn.Module, step: int) -> Tensor:
        """This rank's part of the loss of a step; the average over ranks is the global loss.

        A rank without entries in the batch returns a zero that still depends on the model: its backward pass
        gives zero gradients and joins whatever collectives the others run.

        Args:
            model: gives values as learnt.
            step: chooses the minibatch; calls with the same step see the same entries.

        Returns:
            Scalar of the model's dtype.
        """
        indices, targets = self._batch_of(step)
        return (model(indices) - targets).square().sum() * self._loss_factor

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float | None]:
        """Fit on each part of the split, in the unit of the data, the same on every rank.

        Returns:
            `train/rmse`, `train/mae`, `train/r2`, `train/r2_uncentred`, then the same of `validation` and
            `heldout`. None throughout for an empty part; None for an R2 whose total sum of squares is 0. The
            scores of a model that diverged stay nan or inf.

        Collectives: one gather of 6 float64 for each part that is not empty, and whatever the model's forward
            runs; every rank calls it.

        Raises:
            RuntimeError: world_size > 1 and there is no process group of that size.
        """
        scores = {}
        for part in ("train", "validation", "heldout"):
            for name, value in self._score(model, getattr(self.split, part)).items():
                scores[f"{part}/{name}"] = value
        return scores

    @torch.no_grad()
    def predict(self, model: nn.Module, indices: np.ndarray | Tensor) -> np.ndarray:
        """The model's values of the given entries in the unit of the data.

        Args:
            model: gives values as learnt; a sharded one needs every rank to call this with the same indices.
            indices: (N, order) integers; N may be 0.

        Returns:
            (N,) float64.

        Raises:
            InputError: a row of `indices` is no entry of the tensor.
        """
        given = indices.cpu().numpy() if isinstance(indices, Tensor) else np.asarray(indices)
        rows = check_indices(given, self.entries.shape, "indices")
        predicted = np.empty(len(rows))
        for start in range(0, len(rows), _CHUNK):
            predicted[start : start + _CHUNK] = self._predict(model, rows[start : start + _CHUNK]).cpu().numpy()
        return predicted

    @torch.no_grad()
    def fill(self, model: nn.Module, *, keep_known: bool = True) -> np.ndarray:
        """The full tensor in the unit of the data.

        Memory beyond the result stays bounded: a tensor of less than 64M entries is contracted at once if the
        model has `dense()`, a larger one is predicted in chunks.

        Args:
            model: gives values as learnt; unsharded.
            keep_known: known entries keep their value, the model gives the others; else the model gives all.

        Returns:
            float64 of the shape of the tensor.

        Raises:
            InputError: the full tensor does not fit in memory.
        """
        shape = self.entries.shape
        size = math.prod(shape)
        dense = getattr(model, "dense", None)
        if dense is not None and size < _DENSE_LIMIT:
            filled = self._restore(dense()).cpu().numpy()
        else:
            filled = _allocate(shape)
            flat = filled.reshape(-1)
            for start in range(0, size, _CHUNK):
                positions = np.arange(start, min(start + _CHUNK, size))
                rows = np.stack(np.unravel_index(positions, shape), axis=1)
                flat[positions] = self._predict(model, rows).cpu().numpy()
        if keep_known:
            filled[tuple(self.entries.indices.T)] = self.entries.values
        return filled

    def _batch_of(self, step: int) -> tuple[Tensor, Tensor]:
        """This rank's slice, on the device: a full batch for good, a minibatch for the passes of one step."""
        step = 0 if self.batch_size is None else step
        if self._batch is None or self._batch[0] != step:
            train = self.split.train
            if self.batch_size is not None:
                train = train[batch_positions(step, len(train), self.batch_size, self.seed)]
            self._batch = (step, *self._load(rank_slice(train, self.rank, self.world_size)))
        return self._batch[1:]

    def _load(self, positions: np.ndarray) -> tuple[Tensor, Tensor]:
        """Indices and values as learnt of these entries, on the device."""
        learnt = (self.entries.values[positions] - self.scaling.mean) / self.scaling.std
        indices = torch.from_numpy(self.entries.indices[positions]).to(self.device)
        return indices, torch.from_numpy(learnt).to(self.device, self.dtype)

    def _score(self, model: nn.Module, positions: np.ndarray) -> dict[str, float | None]:
        if not len(positions):
            return dict.fromkeys(SCORES)
        metric = FitMetric(float(self.entries.values[positions].mean()), sync=self.world_size > 1).to(self.device)
        own = rank_slice(positions, self.rank, self.world_size)
        # As many calls as the rank with the largest slice makes: in a sharded model each is a collective.
        for start in range(0, math.ceil(len(positions) / self.world_size), _CHUNK):
            taken = own[start : start + _CHUNK]
            values = torch.from_numpy(self.entries.values[taken]).to(self.device)
            metric.update(self._predict(model, self.entries.indices[taken]), values)
        scores = metric.compute()
        if scores.pop("count") != len(positions):
            raise RuntimeError(
                f"{len(positions)} entries were to be judged by {self.world_size} ranks, but not all were: "
                f"start a process group of {self.world_size} ranks, or use world_size=1"
            )
        return scores

    def _predict(self, model: nn.Module, rows: np.ndarray) -> Tensor:
        return self._restore(model(torch.from_numpy(rows).to(self.device)))

    def _restore(self, learnt: Tensor) -> Tensor:
        return learnt.double() * self.scaling.std + self.scaling.mean


def _allocate(shape: tuple[int, ...]) -> np.ndarray:
    try:
        return np.empty(shape)
    except (MemoryError, ValueError) as error:  # ValueError: more bytes than an address can count
        need_gib = math.prod(shape) * 8 / 2**30
        raise InputError(
            f"the full tensor of shape {shape} needs {need_gib:.3g} GiB, more than there is; "
            "name the entries to predict instead"
        ) from error


def _check_arguments(loss: str, batch_size: int | None, num_train: int) -> None:
    if loss not in ("mean", "sum"):
        raise InputError(f"train.loss={loss!r} is unknown; it must be 'mean' or 'sum'")
    if batch_size is not None and not 1 <= batch_size <= num_train:
        raise InputError(
            f"train.batch_size={batch_size}; it must be 1 to {num_train}, the number of training entries, "
            "or null for all of them"
        )


def _spread(values: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation; the latter 1 where values are constant, so that dividing is harmless."""
    mean, std = float(values.mean()), float(values.std())
    return mean, std if std > _ROUNDING * abs(mean) else 1.0
