"""What a task is: the few methods by which a run trains, scores and describes it, whatever is learnt."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from distsam.errors import ArgumentError

Scores = dict[str, float | None]


@dataclass(frozen=True)
class Goal:
    """The score by which weights are chosen, and the scores that a run shows.

    Args:
        key: the score that counts, "<part>/<column>", as `evaluate` names it: "validation/r2".
        higher_is_better: True if a larger value is a better one.
        columns: the columns of the table of scores, in order; the rows are the parts that `evaluate` names.
        headline: (label, key) of the scores that are printed on a line of their own at the end.

    Raises:
        ArgumentError: `key` is not of that form, or names none of the columns.
    """

    key: str
    higher_is_better: bool
    columns: tuple[str, ...]
    headline: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        # Lists are what most people write; tuples keep the goal hashable.
        object.__setattr__(self, "columns", tuple(self.columns))
        object.__setattr__(self, "headline", tuple((label, key) for label, key in self.headline))
        part, _, column = str(self.key).rpartition("/")
        if not part or column not in self.columns:
            raise ArgumentError("key", f"is {self.key!r}; it must be '<part>/<column>' with one of {self.columns}")

    @property
    def column(self) -> str:
        """The column that the key is of: "r2" of "validation/r2"."""
        return self.key.rpartition("/")[2]

    def is_better(self, value: float, than: float) -> bool:
        """True if `value` is strictly better than `than`; never if one of them is nan."""
        return value > than if self.higher_is_better else value < than


def _unchanged(sums: Tensor) -> Tensor:
    return sums


@dataclass(frozen=True)
class TaskContext:
    """What a task may know of the process that it runs in.

    Args:
        seed: of everything that the task draws; the same on every rank.
        data_rank, data_size: which of how many equal parts of every batch this process takes. Processes that share
            a data rank (along other axes of the mesh) take the same part.
        device, dtype: where the model computes, and in what.
        sum_over_ranks: tensor of this data rank -> sum over all data ranks, the same bits on every one of them. A
            collective: all ranks call it equally often, with equal shapes.
        is_planned: the model is to have shapes and no numbers: it takes no memory, and a start need not be computed.
        routed_mode: the mode of a tensor whose positions are divided over the data ranks, or None. With it a process
            takes, of every batch, the entries whose position in that mode lies in its own rows (contiguous, in the
            order of the ranks) instead of an equal part; a task that knows no tensor takes no notice of it.
        num_ranges: into how many ranges of rows that mode is divided; None: one for each data rank. With fewer, data
            rank d holds range d % num_ranges, and the ranks of a range share its entries.
    """

    seed: int = 0
    data_rank: int = 0
    data_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    sum_over_ranks: Callable[[Tensor], Tensor] = _unchanged
    is_planned: bool = False
    routed_mode: int | None = None
    num_ranges: int | None = None


class Task(Protocol):
    """What is learnt, from which data.

    A sharded model may run collectives in its forward, so `loss` and `evaluate` call it equally often on every rank.
    Beside these members a task may have any of `describe() -> str`, `warnings() -> Iterable[str]`, `identity() -> str`,
    `num_values() -> int`, `labels() -> dict` and `verdict(scores) -> str | None`: see the functions of those names.
    """

    goal: Goal

    def build_model(self) -> nn.Module:
        """A new model at its start: whole, on the context's device, the same bits on every rank and at every call."""
        ...

    def microbatches(self, step: int, count: int) -> Sequence[Any]:
        """This data rank's part of the batch of a step, cut into `count` pieces.

        A function of seed and step alone, so that a resume needs no state; steps count from 0. The pieces of all data
        ranks are disjoint and together the batch; a piece may be empty.

        Raises:
            ArgumentError: about "accumulate", if the batch cannot be cut into so many pieces.
        """
        ...

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Loss of one piece, a scalar; its mean over the pieces and the data ranks is the loss of the step.

        It depends on the model also where the piece is empty, so that every rank runs the same backward pass.
        """
        ...

    def evaluate(self, model: nn.Module) -> Scores:
        """Scores by name, "<part>/<column>", with the goal's key among them; the same on every rank.

        None where a score is undefined; a goal of None is no better and no worse than any other.
        Called under `torch.no_grad()`.
        """
        ...


def describe(task: Task) -> str:
    """What is learnt, in one line; the name of the task's class if it does not say."""
    own = getattr(task, "describe", None)
    return str(own()) if own is not None else f"task {type(task).__name__}"


def warnings(task: Task) -> Iterable[str]:
    """One line for each thing about the task that runs but is probably a mistake; none if it does not say."""
    own = getattr(task, "warnings", None)
    return list(own()) if own is not None else []


def identity(task: Task) -> str:
    """A digest of data and split, by which a resume knows that they are the same; "" if the task does not say."""
    own = getattr(task, "identity", None)
    return str(own()) if own is not None else ""


def num_values(task: Task) -> int | None:
    """How many values the loss is fitted to, over all steps; None if the task does not say."""
    own = getattr(task, "num_values", None)
    return int(own()) if own is not None else None


def labels(task: Task) -> dict[str, Any] | None:
    """What the positions of the data are called, for JSON; None if they have no names or the task does not say."""
    own = getattr(task, "labels", None)
    return None if own is None else own()


def verdict(task: Task, scores: Scores) -> str | None:
    """One line on what the scores of a finished run suggest to change; None if nothing, or the task does not say."""
    own = getattr(task, "verdict", None)
    return None if own is None else own(scores)
