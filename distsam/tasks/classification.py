"""Learn the classes of examples."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from distsam.errors import ArgumentError
from distsam.tasks.class_metrics import COLUMNS, ClassMetric
from distsam.tasks.labelled import HELDOUT, TRAIN, VALIDATION, Labelled, noisy_classes
from distsam.tasks.sampler import Sampler, nth_part
from distsam.tasks.task import Goal, Scores, TaskContext

PARTS = {"train": TRAIN, "validation": VALIDATION, "heldout": HELDOUT}
GOAL = Goal(
    key="validation/accuracy",
    higher_is_better=True,
    columns=COLUMNS,
    headline=(("held-out accuracy", "heldout/accuracy"), ("held-out ECE", "heldout/ece")),
)
# Examples that are judged at a time.
_CHUNK = 1024

# (shape of an input, number of classes) -> a model that gives (B, classes) for (B, *shape)
ModelFactory = Callable[[tuple[int, ...], int], nn.Module]


class Piece(NamedTuple):
    """One micro-batch: (B, ...) inputs, (B,) int64 classes, and by what their summed loss is multiplied."""

    inputs: Tensor
    classes: Tensor
    factor: float


class ClassificationTask:
    """Classification by any model, for one data rank of many.

    A model is called as `model(inputs)` with (B, ...) inputs and gives (B, C) logits.

    Args:
        context: seed of batches and start, data rank and size, where and in what the model computes.
        examples: all of them, the same on every rank.
        part: (N,) which part each is in, as of `split_examples`.
        make_model: draws from torch's generator, which is seeded for it.
        batch_size: examples in the batch of a step over all ranks; None takes all training examples in every step.
        label_smoothing: as of torch's cross entropy.
        label_noise: share of the training labels that are wrong (`noisy_classes`); validation and held-out ones are
            right.
        noise_seed: of the draw of wrong labels.
        standardise: shift and scale inputs by the training inputs' mean and standard deviation, of each feature, or of
            each channel where inputs have more than one dim; ids of tokens stay as they are.
        num_workers: processes that load batches ahead; 0 loads in this one.
        notes: lines that `warnings` gives too; `make_model` may still add to them.

    Raises:
        ArgumentError: about the argument that is out of range.
    """

    goal = GOAL

    def __init__(
        self,
        context: TaskContext,
        examples: Labelled,
        part: np.ndarray,
        make_model: ModelFactory,
        *,
        batch_size: int | None = None,
        label_smoothing: float = 0.0,
        label_noise: float = 0.0,
        noise_seed: int = 0,
        standardise: bool = True,
        num_workers: int = 0,
        notes: Iterable[str] = (),
    ) -> None:
        self._notes = notes
        self.context, self.examples, self._make_model = context, examples, make_model
        self._positions = {name: np.flatnonzero(part == number) for name, number in PARTS.items()}
        train = self._positions["train"]
        self._sampler = Sampler(len(train), batch_size, context)
        self._label_smoothing, self._label_noise, self._num_workers = label_smoothing, label_noise, num_workers
        self._inputs = torch.from_numpy(examples.inputs)
        if standardise and self._inputs.is_floating_point():
            mean, std = _mean_and_std(examples.inputs[train])
            self._inputs = torch.from_numpy((examples.inputs - mean) / std)
        classes = examples.classes.copy()
        classes[train] = noisy_classes(classes[train], examples.num_classes, label_noise, noise_seed)
        self._classes = torch.from_numpy(classes)
        self._stream: _Stream | None = None

    def build_model(self) -> nn.Module:
        """The model at its start, whole, on the context's device and in its dtype.

        Raises:
            ArgumentError: about "model": it does not take two examples, or does not give (2, C) logits for them.
        """
        shape, num_classes = tuple(self._inputs.shape[1:]), self.examples.num_classes
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.context.seed)
            model = self._make_model(shape, num_classes).to(self.context.device, self.context.dtype)
            _check_output(model, self._on_device(self._inputs[self._telling()]), num_classes)
        return model

    def _telling(self) -> Tensor:
        """Two positions; of ids one is that of the largest, for which a table of tokens may be too small."""
        if self._inputs.is_floating_point():
            return torch.arange(min(2, len(self._inputs)))
        return torch.tensor([0, int(self._inputs.flatten(1).max(1).values.argmax())])

    def microbatches(self, step: int, count: int) -> Sequence[Piece]:
        """This rank's examples of a step in `count` pieces, on the device; see `Task`.

        Raises:
            ArgumentError: about "accumulate": `count` does not divide `batch_size`.
        """
        if self._stream is None or (self._stream.step, self._stream.count) != (step, count):
            train = torch.from_numpy(self._positions["train"])
            data = TensorDataset(self._inputs[train], self._classes[train])
            self._stream = _Stream(data, self._sampler, step, count, self._num_workers)
        factor = self._sampler.mean_factor(count)
        device = self.context.device
        return [Piece(self._on_device(x), y.to(device), factor) for x, y in self._stream.next_step()]

    def loss(self, model: nn.Module, batch: Piece) -> Tensor:
        """Cross entropy of one piece; the mean over pieces and ranks is that of the batch."""
        if len(batch.classes) or not model.training:
            logits = model(batch.inputs)
        else:
            # Normalization has no statistics of nothing; the pass must still run, for the collectives in it.
            logits = model.eval()(batch.inputs)
            model.train()
        total = cross_entropy(logits, batch.classes, reduction="sum", label_smoothing=self._label_smoothing)
        return total * batch.factor

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> Scores:
        """Accuracy, top-5, calibration error and cross entropy of each part; training examples by the labels learnt.

        Returns:
            "train/accuracy", "train/top5", "train/ece", "train/cross_entropy", then of "validation" and "heldout"; None
            throughout for an empty part, and top5 of five or fewer classes.

        Collectives: one sum of 49 float64 over the data ranks for each part that is not empty, and whatever the model's
            forward runs; every rank calls it.
        """
        scores: Scores = {}
        for name, positions in self._positions.items():
            metric = ClassMetric(self.examples.num_classes, self.context.sum_over_ranks, self.context.device)
            own = nth_part(positions, self.context.data_rank, self.context.data_size)
            # As many calls of the model as the rank with the most examples makes.
            for start in range(0, -(-len(positions) // self.context.data_size), _CHUNK):
                chosen = torch.from_numpy(own[start : start + _CHUNK])
                logits = model(self._on_device(self._inputs[chosen]))
                metric.update(logits, self._classes[chosen].to(self.context.device))
            found = metric.compute() if len(positions) else dict.fromkeys(COLUMNS)
            scores.update({f"{name}/{column}": value for column, value in found.items()})
        return scores

    def describe(self) -> str:
        """Classes, shape of an input, number of examples in each part, and the noise in labels."""
        shape = " x ".join(str(size) for size in self._inputs.shape[1:])
        train, validation, heldout = (len(positions) for positions in self._positions.values())
        noise = f"; {self._label_noise:.0%} of the training labels are wrong" if self._label_noise else ""
        classes = f"{self.examples.num_classes} classes"
        if self.examples.names:
            classes += f" ({', '.join(self.examples.names[:8])})"
        return (
            f"{classes} of inputs of {shape}; {train} training, {validation} validation, "
            f"{heldout} held-out examples{noise}"
        )

    def warnings(self) -> Iterator[str]:
        """Parts that are too small to learn from or to choose by, and the notes."""
        yield from self._notes
        missing = set(range(self.examples.num_classes)) - set(self._classes[self._positions["train"]].tolist())
        if missing:
            yield f"no training example of class {min(missing)}" + (
                f" nor of {len(missing) - 1} others" if len(missing) > 1 else ""
            )
        if not len(self._positions["validation"]):
            yield "there are no validation examples: the last weights are taken, whatever they are worth"

    def identity(self) -> str:
        """Hexadecimal digest of the examples, their parts, and the labels as they are learnt."""
        digest = hashlib.sha256(self.examples.sha256().encode() + self._classes.numpy().tobytes())
        for positions in self._positions.values():
            digest.update(positions.tobytes())
        return digest.hexdigest()

    def _on_device(self, inputs: Tensor) -> Tensor:
        dtype = self.context.dtype if inputs.is_floating_point() else inputs.dtype
        return inputs.to(self.context.device, dtype)


class _Stream:
    """Batches of consecutive steps, loaded by torch's DataLoader; where it begins is all the state there is."""

    def __init__(self, data: TensorDataset, sampler: Sampler, step: int, count: int, num_workers: int) -> None:
        sampler.pieces(step, count)  # refuses a count that does not fit, here and not in a loading process
        self.step, self.count = step, count
        loader: DataLoader[Any] = DataLoader(
            data,
            # Whole pieces: rows are taken from the tensors at once, not one by one.
            batch_size=None,
            sampler=_PiecesFrom(sampler, step, count),
            num_workers=num_workers,
            # Its own: a loader that is made again after a resume must leave the numbers of dropout alone.
            generator=torch.Generator().manual_seed(0),
        )
        self._loaded = iter(loader)

    def next_step(self) -> list[Any]:
        """The pieces of a step, each (inputs, classes)."""
        self.step += 1
        return [next(self._loaded) for _ in range(self.count)]


class _PiecesFrom:
    """Positions of every piece of every step from one step on."""

    def __init__(self, sampler: Sampler, step: int, count: int) -> None:
        self._sampler, self._step, self._count = sampler, step, count

    def __iter__(self) -> Iterator[Tensor]:
        step = self._step
        while True:
            yield from (torch.from_numpy(own) for own in self._sampler.pieces(step, self._count))
            step += 1


def _mean_and_std(inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each feature of (N, F), of each channel of (N, C, ...); a constant one has standard deviation 1."""
    axes = (0, *range(2, inputs.ndim))
    mean = inputs.mean(axes, dtype=np.float64, keepdims=True)[0]
    std = inputs.std(axes, dtype=np.float64, keepdims=True)[0]
    return mean.astype(np.float32), np.where(std > 0, std, 1).astype(np.float32)


def _check_output(model: nn.Module, inputs: Tensor, num_classes: int) -> None:
    was_training = model.training
    try:
        with torch.no_grad():
            logits = model.eval()(inputs)
    except ArgumentError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        sizes = " x ".join(map(str, inputs.shape[1:]))
        raise ArgumentError("model", f"does not take inputs of {sizes}, {inputs.dtype}: {reason}") from None
    model.train(was_training)
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if shape != (len(inputs), num_classes):
        problem = f"gives {shape} for {len(inputs)} inputs; it must be ({len(inputs)}, {num_classes}), a logit a class"
        raise ArgumentError("model", problem)
