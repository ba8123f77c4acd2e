"""What every task promises the loop: batches, loss, scores and start."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from task_members import TASKS, Make, context_of, on_every_rank
from torch import Tensor

from distsam.errors import ArgumentError
from distsam.tasks.task import Goal, Task, describe, identity, num_values, warnings

every_task = pytest.mark.parametrize("make", TASKS.values(), ids=TASKS)
# Of the full batch (101 and 100 examples here) no count and no size but 1 divides all; 12 is divided by 1, 2 and 4.
every_batch = pytest.mark.parametrize("batch_size", [None, 12])
every_count = pytest.mark.parametrize("count", [1, 2, 4])
every_size = pytest.mark.parametrize("size", [1, 2, 3])
STEPS = (0, 3, 17)


def tensors_of(batch: Any) -> list[Tensor]:
    parts = [batch] if isinstance(batch, Tensor) else batch if isinstance(batch, tuple | list) else vars(batch).values()
    return [part for part in parts if isinstance(part, Tensor)]


def rows_of(batch: Any) -> Iterator[tuple[float, ...]]:
    """The examples of one piece, as plain tuples."""
    columns = [
        tensor.flatten(1).tolist() if tensor.dim() > 1 else tensor[:, None].tolist() for tensor in tensors_of(batch)
    ]
    for parts in zip(*columns, strict=True):
        yield tuple(number for part in parts for number in part)


def pieces_of(make: Make, step: int, count: int, size: int, batch_size: int | None) -> list[Any]:
    tasks = [make(context_of(rank, size), batch_size) for rank in range(size)]
    return [piece for task in tasks for piece in task.microbatches(step, count)]


@every_task
@every_batch
def test_a_batch_is_a_function_of_seed_and_step_whatever_was_asked_before(make: Make, batch_size: int | None) -> None:
    task, other_seed = make(context_of(), batch_size), make(context_of(seed=6), batch_size)
    forward = [list(rows_of(task.microbatches(step, 1)[0])) for step in STEPS]
    backward = [list(rows_of(make(context_of(), batch_size).microbatches(step, 1)[0])) for step in reversed(STEPS)]
    assert forward == backward[::-1]
    if batch_size is not None:
        assert forward[0] != forward[1]
        assert sorted(forward[0]) != sorted(rows_of(other_seed.microbatches(0, 1)[0]))


@every_task
@every_batch
@every_count
@every_size
def test_the_pieces_of_all_ranks_are_disjoint_and_together_the_batch(
    make: Make, batch_size: int | None, count: int, size: int
) -> None:
    for step in STEPS:
        pieces = pieces_of(make, step, count, size, batch_size)
        assert len(pieces) == count * size
        [whole] = pieces_of(make, step, 1, 1, batch_size)
        assert Counter(row for piece in pieces for row in rows_of(piece)) == Counter(rows_of(whole))
        lengths = [len(list(rows_of(piece))) for piece in pieces]
        assert max(lengths) - min(lengths) <= 1


@every_task
@every_batch
@every_count
@every_size
def test_the_mean_over_pieces_and_ranks_is_the_loss_and_gradient_of_one_process(
    make: Make, batch_size: int | None, count: int, size: int
) -> None:
    reference = make(context_of(), batch_size)
    model = reference.build_model()
    for step in STEPS:
        expected = loss_and_gradients(reference, model, reference.microbatches(step, 1), 1)
        got = loss_and_gradients(reference, model, pieces_of(make, step, count, size, batch_size), count * size)
        for value, wanted in zip(got, expected, strict=True):
            torch.testing.assert_close(value, wanted, rtol=1e-12, atol=1e-12 * float(wanted.abs().max()))


def loss_and_gradients(task: Task, model: torch.nn.Module, pieces: Any, num_pieces: int) -> list[Tensor]:
    model.zero_grad()
    total = torch.zeros((), dtype=torch.float64)
    for piece in pieces:
        loss = task.loss(model, piece)
        assert loss.shape == ()
        assert loss.dtype == torch.float64
        (loss / num_pieces).backward()
        total += loss.detach() / num_pieces
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None for gradient in gradients)
    return [total, *(gradient.clone() for gradient in gradients if gradient is not None)]


@every_task
def test_an_empty_piece_gives_gradients_of_zero_not_none(make: Make) -> None:
    """Of 2 examples 3 ranks leave one without: its backward pass must join the collectives of the others."""
    tasks = [make(context_of(rank, 3), 2) for rank in range(3)]
    [(task, empty)] = [(task, piece) for task in tasks for piece in task.microbatches(0, 1) if not list(rows_of(piece))]
    model = task.build_model()
    task.loss(model, empty).backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())


@every_task
@pytest.mark.parametrize("count", [5, 7, 24])
def test_a_count_that_does_not_divide_an_explicit_batch_is_refused_naming_both(make: Make, count: int) -> None:
    with pytest.raises(ArgumentError, match=rf"{count} .*12") as caught:
        make(context_of(), 12).microbatches(0, count)
    assert caught.value.argument == "accumulate"


@every_task
@every_size
def test_evaluation_gives_the_goal_and_the_same_on_every_rank_of_any_number(make: Make, size: int) -> None:
    # Built once: threads that seed torch's one generator would disturb each other, unlike the ranks they stand for.
    model = make(context_of()).build_model()

    def scores(context: Any) -> dict[str, float | None]:
        with torch.no_grad():
            return make(context).evaluate(model)

    [alone] = on_every_rank(1, scores)
    every = on_every_rank(size, scores)
    assert make(context_of()).goal.key in alone
    assert all(one == every[0] for one in every)  # to the last bit: every rank must take the same decision from them
    assert every[0] == pytest.approx(alone, rel=1e-12)
    assert all(value is None or type(value) is float for value in alone.values())


@every_task
def test_evaluation_leaves_weights_and_batches_as_they_were(make: Make) -> None:
    task = make(context_of(), 12)
    model = task.build_model()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    batch = list(rows_of(task.microbatches(3, 1)[0]))
    with torch.no_grad():
        first, again = task.evaluate(model), task.evaluate(model)
    assert first == again
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert list(rows_of(task.microbatches(3, 1)[0])) == batch


@every_task
def test_the_start_has_the_same_bits_at_every_call_and_rank_and_others_of_another_seed(make: Make) -> None:
    task = make(context_of())
    models = [task.build_model(), task.build_model(), make(context_of(1, 2)).build_model()]
    first, *others = ([parameter.detach() for parameter in model.parameters()] for model in models)
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert models[0] is not models[1]
    strange = make(context_of(seed=6)).build_model().parameters()
    assert not all(torch.equal(a, b) for a, b in zip(first, strange, strict=True))


@every_task
def test_the_identity_changes_with_the_data_alone(make: Make) -> None:
    own = identity(make(context_of()))
    assert own
    assert own == identity(make(context_of(1, 2, seed=6), 12))
    assert own != identity(make(context_of(), None, 1e-6))


@every_task
def test_what_a_task_says_of_itself_is_one_line_each(make: Make) -> None:
    task = make(context_of())
    assert isinstance(task.goal, Goal)
    for line in (describe(task), *warnings(task)):
        assert line
        assert "\n" not in line
    assert num_values(task) is None or num_values(task) > 0
