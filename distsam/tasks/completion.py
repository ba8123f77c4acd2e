"""Learn the entries of a tensor that are missing from those that are known."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from distsam.errors import ArgumentError, InputError, renaming
from distsam.tasks.entries import Entries, Origin, check_indices, check_memory
from distsam.tasks.metrics import SCORES, FitMetric
from distsam.tasks.routed import route_entries
from distsam.tasks.routing import Routing
from distsam.tasks.sampler import RoutedSampler, Sampler, nth_part
from distsam.tasks.scaling import Scaling, spread_of
from distsam.tasks.split import PARTS, Split, split_identity
from distsam.tasks.task import Goal, Scores, TaskContext
from distsam.tensornet import NetworkSpec, TensorNetwork

GOAL = Goal(
    key="validation/r2",
    higher_is_better=True,
    columns=("r2", "r2_uncentred", "rmse", "mae"),
    headline=(("held-out R2", "heldout/r2"), ("held-out RMSE", "heldout/rmse")),
)

# Entries predicted at a time: bounds the (entries, bond) intermediates of the model, not the result.
_CHUNK = 2**18
# Below this many entries a full tensor is contracted at once, which is far faster than entry by entry.
_DENSE_LIMIT = 2**26


# Ratios of RMSE, and an R2, at which a run says what they suggest: chosen so that a good fit says nothing.
# R2 of 0.94 on both looked fine on parking data, at six times the error of a network that is large enough.
_FAR_APART, _ALIKE, _HIGH_R2 = 2.0, 1.25, 0.97
# A start may leave the range of the training values by so many times its width.
_FAR_OUTSIDE = 1.0


class Piece(NamedTuple):
    """One micro-batch: (B, order) indices, (B,) values as learnt, and by what their summed loss is multiplied."""

    indices: Tensor
    targets: Tensor
    factor: float


class Observations(NamedTuple):
    """(B, order) indices and (B,) values as learnt, of this rank; the loss is `factor` times the sum of squared errors
    over all ranks."""

    indices: Tensor
    targets: Tensor
    factor: float


class CompletionTask:
    """Tensor completion by a network, for one data rank of many.

    A model is called as `model(indices)` with (B, order) int64 and gives (B,) values as learnt. A sharded
    model may run collectives in there, so every method makes equally many calls on every rank.

    With `context.routed_mode` a rank holds, learns and judges the entries in its own rows of that mode, and calls the
    model with these alone; the indices stay those of the whole tensor. Steps and scores are those of one process.

    Args:
        context: seed of batches and start, data rank and size, where and in what the model computes.
        entries: all known entries, the same on every rank; with `routing`, those that this rank owns.
        split: positions into `entries`.
        spec: the network, of the shape of the tensor.
        batch_size: entries in the batch of a step over all ranks; None takes all training entries in every step.
        loss: `mean` or `sum` of squared errors over that batch, on the scale as learnt.
        standardise: learn values of mean 0 and standard deviation 1, measured on the training entries alone.
        init: `gaussian` draws the start, `data` decomposes the training entries (`TensorNetwork.from_dense`).
        init_std: root mean square of the entries of a gaussian start; None takes that of the values as learnt.
        init_norms: ratios of the core norms of a gaussian start, one a core; None makes them equal.
        routing: what `load_routed` gives beside the entries of this rank; None: `entries` are all.

    Attributes:
        row_bounds: range r of the rows of `context.routed_mode` is [row_bounds[r], row_bounds[r + 1]); data rank d
            holds range d, or where there are fewer ranges d modulo their number. None where no mode is routed.
        scaling: `Scaling` fitted on the training entries; mean 0, std 1 without `standardise`.
        target_std: standard deviation of the training values as learnt, 1 where they are constant.
        starts_deferred: `build_model` may be called under `deferred_draws`: it looks at no number that it draws.

    Raises:
        ArgumentError: about the argument that is unknown, out of range, or does not fit the network.
    """

    goal = GOAL
    starts_deferred = True

    def __init__(
        self,
        context: TaskContext,
        entries: Entries,
        split: Split,
        spec: NetworkSpec,
        *,
        batch_size: int | None = None,
        loss: str = "mean",
        standardise: bool = True,
        init: str = "gaussian",
        init_std: float | None = None,
        init_norms: Sequence[float] | None = None,
        routing: Routing | None = None,
    ) -> None:
        _check_word("loss", loss, ("mean", "sum"))
        _check_word("init", init, ("gaussian", "data"))
        if spec.shape != entries.shape:
            raise ArgumentError("spec", f"is a network of shape {spec.shape}; the tensor has {entries.shape}")
        if context.routed_mode is not None and init == "data":
            raise ArgumentError(
                "init", f"is 'data', which needs all entries; with mode {context.routed_mode} routed take 'gaussian'"
            )
        if context.routed_mode is not None and routing is None:
            entries, split, routing = route_entries(entries, split, context)
        if (None if routing is None else routing.owner.mode) != context.routed_mode:
            raise ArgumentError("routing", f"is not that of mode {context.routed_mode}, which the context names")
        self.context, self.entries, self.split, self.spec = context, entries, split, spec
        self.row_bounds = None if routing is None else routing.bounds
        self._routing = routing
        if routing is None:
            self._spreads = {part: spread_of(entries.values[getattr(split, part)]) for part in PARTS}
        else:
            self._spreads = dict(routing.spreads)
        train = self._spreads["train"]
        self._sampler = (
            Sampler(train.count, batch_size, context)
            if routing is None
            else RoutedSampler(train.count, batch_size, context, routing.own_train)
        )
        self._loss, self._init, self._init_std, self._init_norms = loss, init, init_std, init_norms
        # Dividing by 1 does constant values no harm.
        std = train.std if train.varies else 1.0
        self.scaling = Scaling(train.mean, std) if standardise else Scaling()
        self.target_std = std / self.scaling.std
        self._full_batch: list[Piece] = []
        self._refused_start: str | None = None

    def build_model(self) -> TensorNetwork:
        """The network at its start, whole, on the context's device.

        A decomposition that predicts worse than the mean, or values far from all that are known, is not used: the start
        is then gaussian, and `warnings` says so.

        Raises:
            ArgumentError: `init`, `init_std` or `init_norms` gives no start for this network and data.
        """
        seed, dtype, device = self.context.seed, self.context.dtype, self.context.device
        if self._init == "data":
            # The dense tensor, and tensorly's filled copy and unfolding of it, in float64.
            check_memory(24 * math.prod(self.entries.shape), Origin("init", f"data: a tensor of {self.entries.shape}"))
            with renaming({"tensor": "init", "spec": "init"}):
                network = TensorNetwork.from_dense(
                    self._training_values(), self.spec, seed=seed, dtype=dtype, device=device
                )
            self._refused_start = self._fault_of(network)
            if self._refused_start is None:
                return network
        with renaming({"std": "init_std", "norms": "init_norms"}):
            return TensorNetwork(
                self.spec,
                std=self.target_std if self._init_std is None else self._init_std,
                norms=self._init_norms,
                generator=torch.Generator().manual_seed(seed),
                dtype=dtype,
                device=device,
            )

    def microbatches(self, step: int, count: int) -> Sequence[Piece]:
        """This rank's entries of a step in `count` pieces, on the device; see `Task`.

        Raises:
            ArgumentError: about "accumulate": `count` does not divide `batch_size`.
        """
        if self._sampler.batch_size is not None:
            return self._load_pieces(step, count)
        if len(self._full_batch) != count:  # the same entries in every step: they stay on the device
            self._full_batch = self._load_pieces(step, count)
        return self._full_batch

    def observations(self) -> Observations:
        """All training entries of this rank, on the device: what the loss of a step without `batch_size` is made of."""
        [piece] = self.microbatches(0, 1)
        return Observations(piece.indices, piece.targets, piece.factor / self.context.data_size)

    def loss(self, model: nn.Module, batch: Piece) -> Tensor:
        """Squared errors of one piece; the mean over pieces and ranks is the loss of the step.

        A piece without entries gives a zero that still depends on the model: its backward pass gives zero gradients
        and joins whatever collectives the other ranks run.

        Args:
            model: gives values as learnt.
            batch: one of `microbatches`.

        Returns:
            Scalar.
        """
        return (model(batch.indices) - batch.targets).square().sum() * batch.factor

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> Scores:
        """Fit on each part of the split, in the unit of the data, the same on every rank.

        Returns:
            `train/rmse`, `train/mae`, `train/r2`, `train/r2_uncentred`, then the same of `validation` and
            `heldout`. None throughout for an empty part; None for an R2 whose total sum of squares is 0. The
            scores of a model that diverged stay nan or inf.

        Collectives: one sum of 6 float64 over the data ranks for each part that is not empty, and whatever the
            model's forward runs; every rank calls it.

        Raises:
            RuntimeError: the context's `sum_over_ranks` does not sum over its `data_size` ranks.
        """
        scores: Scores = {}
        for part in PARTS:
            for name, value in self._score(model, part).items():
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

        Collectives: where a mode is routed, a sum over the data ranks of one float64 for each entry, in pieces; every
            rank calls it with the same indices.

        Raises:
            ArgumentError: a row of `indices` is no entry of the tensor.
        """
        given = indices.cpu().numpy() if isinstance(indices, Tensor) else np.asarray(indices)
        rows = check_indices(given, self.entries.shape, Origin("indices"))
        predicted = np.empty(len(rows))
        for start in range(0, len(rows), _CHUNK):
            taken = rows[start : start + _CHUNK]
            own = self._predict if self._routing is None else self._predict_together
            predicted[start : start + _CHUNK] = own(model, taken).cpu().numpy()
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
            ArgumentError: about "routed_mode": the known entries lie on several ranks.
        """
        if self._routing is not None:
            raise ArgumentError(
                "routed_mode",
                f"is {self._routing.owner.mode}: no process holds all known entries, nor the whole network; fill "
                "the tensor in one process, where no mode is routed",
            )
        shape = self.entries.shape
        size = math.prod(shape)
        dense = getattr(model, "dense", None)
        if dense is not None and size < _DENSE_LIMIT:
            filled = self.scaling.given(dense()).cpu().numpy()
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

    def describe(self) -> str:
        """Format and size of the network, and the number of entries in each part."""
        shape = " x ".join(str(size) for size in self.spec.shape)
        train, validation, heldout = (self._spreads[part].count for part in PARTS)
        return (
            f"{self.spec.format} network of {shape}, {self.spec.num_parameters} parameters; "
            f"{train} training, {validation} validation, {heldout} held-out entries"
        )

    def warnings(self) -> Iterator[str]:
        """Values that leave nothing to learn, or nothing to choose weights by."""
        yield from self.entries.notes
        if self._refused_start is not None:
            yield f"the decomposition of the training entries is no start: {self._refused_start}; a random one is taken"
        train, validation = self._spreads["train"], self._spreads["validation"]
        if train.low == train.high:
            low = train.low
            yield f"all {train.count} training values are {low:g}: there is nothing to learn, and R2 means nothing"
        elif not train.varies:
            yield (
                f"the {train.count} training values differ by less than float64 can tell beside their mean, "
                f"{train.mean:g}: R2 is undefined; subtract the mean before you save them"
            )
        elif validation.count and validation.low == validation.high:
            yield (
                f"all {validation.count} validation values are {validation.low:g}: R2 is undefined there, so the last "
                "weights are taken, and training never ends early; validate on more entries"
            )

    def identity(self) -> str:
        """Hexadecimal digest of all entries and of the part that each is in."""
        if self._routing is not None:
            return self._routing.identity
        return split_identity(self.entries.sha256(), {part: [getattr(self.split, part)] for part in PARTS})

    def verdict(self, scores: Scores) -> str | None:
        """Whether training and validation error are alike and high, or far apart; None where neither is, or unknown."""
        train_r2, r2 = scores.get("train/r2"), scores.get("validation/r2")
        train_rmse, rmse = scores.get("train/rmse"), scores.get("validation/rmse")
        if train_r2 is None or r2 is None or not train_rmse or rmse is None:
            return None
        if rmse > _FAR_APART * train_rmse:
            return (
                f"validation RMSE {rmse:.4g} is {rmse / train_rmse:.1f} times that of training: the network fits what "
                "does not hold elsewhere; a smaller one, more weight decay or early stopping helps"
            )
        if train_r2 < _HIGH_R2 and rmse < _ALIKE * train_rmse:
            return (
                f"R2 could be higher on training ({train_r2:.2f}) and validation ({r2:.2f}) alike: the network is too "
                "small, the weight decay too strong or the training too short, unless the rest is noise"
            )
        return None

    def labels(self) -> dict[str, Any] | None:
        """Names of the values and modes, and the labels of each mode by position; None for data without."""
        if not self.entries.modes:
            return None
        modes = [{"name": mode.name, "labels": [str(label) for label in mode.labels]} for mode in self.entries.modes]
        return {"value": self.entries.value_name, "modes": modes}

    def num_values(self) -> int:
        """Number of training entries, over all ranks."""
        return self._spreads["train"].count

    def _load_pieces(self, step: int, count: int) -> list[Piece]:
        # The mean over pieces and ranks of these multiples is the mean, or the sum, over the batch.
        factor = self._sampler.mean_factor(count) if self._loss == "mean" else float(count * self.context.data_size)
        return [Piece(*self._load(self.split.train[own]), factor) for own in self._sampler.pieces(step, count)]

    def _training_values(self) -> Tensor:
        """The training entries as learnt, in a dense tensor that is NaN elsewhere."""
        dense = torch.full(self.entries.shape, float("nan"), dtype=torch.float64)
        train = self.split.train
        values = self.scaling.learnt(self.entries.values[train])
        dense[tuple(torch.from_numpy(self.entries.indices[train].T))] = torch.from_numpy(values)
        return dense

    @torch.no_grad()
    def _fault_of(self, start: TensorNetwork) -> str | None:
        """Why training should not begin at this decomposition; None where it may."""
        known, validation = self.entries.values[self.split.train], self.entries.values[self.split.validation]
        dense = self.scaling.given(start.dense())
        low, high, reach = float(known.min()), float(known.max()), _FAR_OUTSIDE * float(known.max() - known.min())
        for value in (float(dense.min()), float(dense.max())):
            if not low - reach <= value <= high + reach:
                return f"it has an entry of {value:.4g}, and the training entries go from {low:.4g} to {high:.4g}"
        if len(validation):
            values = self._predict(start, self.entries.indices[self.split.validation]).cpu().numpy()
            rmse, of_mean = (float(np.sqrt(np.mean((validation - v) ** 2))) for v in (values, known.mean()))
            if rmse > of_mean:
                return f"its validation RMSE is {rmse:.4g}, that of the training mean {of_mean:.4g}"
        return None

    def _load(self, positions: np.ndarray) -> tuple[Tensor, Tensor]:
        """Indices and values as learnt of these entries, on the device."""
        learnt = self.scaling.learnt(self.entries.values[positions])
        indices = torch.from_numpy(self.entries.indices[positions]).to(self.context.device)
        return indices, torch.from_numpy(learnt).to(self.context.device, self.context.dtype)

    def _score(self, model: nn.Module, part: str) -> dict[str, float | None]:
        context, spread, own = self.context, self._spreads[part], getattr(self.split, part)
        if not spread.count:
            return dict.fromkeys(SCORES)
        metric = FitMetric(spread.mean, context.sum_over_ranks, context.device)
        if self._routing is None:
            own = nth_part(own, context.data_rank, context.data_size)
            most = math.ceil(spread.count / context.data_size)
        else:
            most = self._routing.most[part]
        # As many calls as the rank with the largest part makes: in a sharded model each is a collective.
        for start in range(0, most, _CHUNK):
            taken = own[start : start + _CHUNK]
            values = torch.from_numpy(self.entries.values[taken]).to(context.device)
            metric.update(self._predict(model, self.entries.indices[taken]), values)
        scores = metric.compute()
        if scores.pop("count") != spread.count:
            raise RuntimeError(
                f"some of {spread.count} entries were not judged: the context's sum_over_ranks must sum over "
                f"{context.data_size} ranks"
            )
        return scores

    def _predict_together(self, model: nn.Module, rows: np.ndarray) -> Tensor:
        """Predictions of which each rank makes those in its own rows."""
        assert self._routing is not None
        bounds, owner = self._routing.bounds, self._routing.owner
        ranges = np.searchsorted(bounds, rows[:, owner.mode], side="right") - 1
        # Of the ranks that hold the same rows the first one answers.
        own = np.flatnonzero((ranges == owner.range) & (owner.copy == 0))
        predicted = torch.zeros(len(rows), dtype=torch.float64, device=self.context.device)
        predicted[torch.from_numpy(own).to(self.context.device)] = self._predict(model, rows[own])
        return self.context.sum_over_ranks(predicted)

    def _predict(self, model: nn.Module, rows: np.ndarray) -> Tensor:
        return self.scaling.given(model(torch.from_numpy(rows).to(self.context.device)))


def _allocate(shape: tuple[int, ...]) -> np.ndarray:
    try:
        return np.empty(shape)
    except (MemoryError, ValueError) as error:  # ValueError: more bytes than an address can count
        need_gib = math.prod(shape) * 8 / 2**30
        raise InputError(
            f"the full tensor of shape {shape} needs {need_gib:.3g} GiB, more than there is; "
            "name the entries to predict instead"
        ) from error


def _check_word(argument: str, word: str, known: Sequence[str]) -> None:
    if word not in known:
        raise ArgumentError(argument, f"{word!r} is unknown; it must be {' or '.join(map(repr, known))}")
